"""A plain checkpoint with every layer multiplied out: as large as the dense model, loads everywhere."""

import copy
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from slimrank.checkpoint import write_checkpoint
from slimrank.forms import Embedding, Experts, Form
from slimrank.forms.embedding import TIES, TiedHead, dense_head
from slimrank.model.load import Loaded
from slimrank.serve.export.parity import Runner, torch_runner


def export_dense(loaded: Loaded, folder: Path) -> Runner:
    """Write it in the checkpoint's own dtype, with all that lies beside the weights, and load it back."""
    plain = multiplied_out(loaded.model)
    write_checkpoint(
        plain, folder, layers={}, dtype=loaded.dtype, source=loaded.directory, tokenizer=loaded.tokenizer,
        overwrite=True,
    )  # fmt: skip
    written = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    ).eval()
    return torch_runner(written, rounded=loaded.dtype != torch.float32)


@torch.no_grad()
def multiplied_out(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose compressed layers are dense ones of the class that the architecture has in their place."""
    config = copy.deepcopy(model.config)
    for name in ("quantization_config", "_pre_quantization_dtype"):  # the latter is transformers' own, no JSON value
        if hasattr(config, name):
            delattr(config, name)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    plain = copy.deepcopy(model)
    plain.config = config
    for name, form in [(name, module) for name, module in plain.named_modules() if isinstance(module, Form)]:
        plain.set_submodule(name, _dense(form, skeleton.get_submodule(name), form.dense_bias(), model.dtype))
    for name, experts in [(name, module) for name, module in plain.named_modules() if isinstance(module, Experts)]:
        plain.set_submodule(name, experts.dense(skeleton.get_submodule(name), model.dtype))
    _plain_embeddings(plain, skeleton)
    return plain


def _plain_embeddings(plain: PreTrainedModel, skeleton: PreTrainedModel) -> None:
    """Put plain embeddings in the places of those of few bits, and heads tied to them as the skeleton's are."""
    modules = dict(plain.named_modules())
    tables = {id(one): (name, one.plain(plain.dtype)) for name, one in modules.items() if isinstance(one, Embedding)}
    for name, head in modules.items():
        if isinstance(head, TiedHead):
            like = cast(nn.Linear, skeleton.get_submodule(name))
            plain.set_submodule(name, dense_head(head, like, tables[id(head.embedding)][1]))
    for name, table in tables.values():
        plain.set_submodule(name, table)
    for name in TIES if tables else ():
        vars(plain).pop(name, None)
        vars(plain).update({name: vars(skeleton)[name]} if name in vars(skeleton) else {})


def _dense(form: Form, like: nn.Module, bias: torch.Tensor | None, dtype: torch.dtype) -> nn.Module:
    weight = form.dense_weight().to(dtype)
    like.weight = nn.Parameter((weight if isinstance(like, nn.Linear) else weight.T).contiguous())
    if bias is not None:
        like.bias = nn.Parameter(bias.to(dtype))
    return like
