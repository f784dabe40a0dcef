"""Make a model faster at inference: fewer products, none that only reorders, and kernels for few tokens at a time.

In a decoder block q, k and v read one tensor, and so do gate and up. The matrices that multiply it, the weight of a
dense layer or the input factor of a compressed one, are stacked into one, so that a step starts fewer and larger
products. Which linears share an input is found by running a few tokens, for any architecture; no name is looked at.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.model.modules import attached, set_module
from slimrank.serve.few_tokens import use_few_token_kernels
from slimrank.serve.fold import fold_orders
from slimrank.serve.one_token import use_one_token_kernels
from slimrank.serve.packed import Packed, PackedPart


def optimize(model: PreTrainedModel) -> PreTrainedModel:
    """Fold orders away, pack the linears of `model` that share an input, and take the device's kernels, in place.

    Returns the model. The state dict keeps its keys and shapes, so the model saves and loads like before, though
    channels inside an MLP may be in another order; outputs differ by rounding only. The packed weights get no gradients
    and are no nn.Linear for PEFT: fine-tune first, then optimize.
    """
    fold_orders(model)
    for names in shared_inputs(model):
        linears = [model.get_submodule(name) for name in names]
        packed = Packed([linear for linear in linears if isinstance(linear, nn.Linear)])
        for index, name in enumerate(names):
            set_module(model, name, PackedPart(packed, index))
    if not use_few_token_kernels(model):
        use_one_token_kernels(model)
    return model


@torch.no_grad()
def shared_inputs(model: PreTrainedModel) -> list[list[str]]:
    """Groups of nn.Linear, by name in the order they run, that read the very same tensor in a forward pass."""
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    tokens = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    with _calls(linears) as calls:
        model(tokens, use_cache=False)
    groups: dict[int, list[str]] = {}
    for name, x in calls:
        groups.setdefault(id(x), []).append(name)
    once = [names for names in groups.values() if len(set(names)) == len(names)]
    return [names for names in once if len(names) > 1 and _alike([linears[name] for name in names])]


@contextmanager
def _calls(linears: dict[str, nn.Linear]) -> Iterator[list[tuple[str, Tensor]]]:
    """The (name, input) of each call of the linears; the inputs are kept, so that no two share an id."""
    calls: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        return lambda module, args: calls.append((name, args[0]))

    with attached(module.register_forward_pre_hook(note(name)) for name, module in linears.items()):
        yield calls


def _alike(linears: Sequence[nn.Linear]) -> bool:
    return len({(linear.weight.dtype, linear.weight.device) for linear in linears}) == 1
