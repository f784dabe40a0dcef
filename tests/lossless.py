"""Models compressed without loss, so that every difference is the checkpoint's fault."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slimrank.forms import FORMS, compressed_layers
from slimrank.forms.linear import is_linear, weight_of
from slimrank.run.quantize import quantized


def compress(model: PreTrainedModel, *forms: str) -> PreTrainedModel:
    """Replace every linear but the output embedding by its exact factorisation, the forms taking turns."""
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if is_linear(module) and module is not model.get_output_embeddings()
    ]
    for number, (name, dense) in enumerate(linears):
        form = FORMS[(forms or ("low_rank",))[number % max(len(forms), 1)]]
        model.set_submodule(name, form.from_low_rank(*factors(weight_of(dense)), dense.bias))
    return model


def rounded(model: PreTrainedModel, bits: int, group: int | None, *forms: str) -> PreTrainedModel:
    """As compress, then with loss: the factors rounded to so many bits, `group` inputs sharing a scale."""
    compress(model, *forms)
    for name in compressed_layers(model):
        model.set_submodule(name, quantized(model.get_submodule(name), bits, group))
    return model


def factors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """left (out, r) and right (r, in) of full rank with left @ right = weight."""
    left, values, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return (left * values).float(), right.float()
