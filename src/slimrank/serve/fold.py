"""Fold a layer's order into the layers around it, where they alone see it.

The rows of gate and up and the columns of down may be reordered together, since what lies between them treats every
channel alike; a form that reorders its outputs or inputs at every call (see Ordered) then no longer needs to. Where
channels may be reordered is found by running a few tokens with such a channel order, for any architecture; no name is
looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.forms.base import Form
from slimrank.forms.linear import is_linear, permute_inputs, permute_outputs, shape_of
from slimrank.forms.ordered import Ordered
from slimrank.model.modules import attached


@dataclass
class Passage:
    """Channels that go from the linears `makers`, which share an input, to the input of the linear `reader` alone."""

    makers: list[str]
    reader: str


def fold_orders(model: PreTrainedModel) -> int:
    """Reorder channels, in place, so that as few layers as possible reorder at a call; returns how many no longer do.

    The model computes the same, up to rounding, and its state dict keeps its keys and shapes.
    """
    for passage in passages(model):
        makers = [model.get_submodule(name) for name in passage.makers]
        reader = model.get_submodule(passage.reader)
        order = wanted_order(makers, reader)
        if order is None:
            continue
        for maker in makers:
            maker.permute_outputs(order) if isinstance(maker, Form) else permute_outputs(maker, order)
        reader.permute_inputs(order) if isinstance(reader, Form) else permute_inputs(reader, order)
    layers = [module for module in model.modules() if isinstance(module, Ordered)]
    for layer in layers:
        layer.find_in_order()
    return sum(layer.in_order for layer in layers)


def wanted_order(makers: list[nn.Module], reader: nn.Module) -> Tensor | None:
    """The new order of the channels (n,) int64 after which the reader, or else the first maker, need not reorder them.

    None where none of them reorders, or one is quantized.
    """
    if any(isinstance(module, Form) and module.bits for module in (*makers, reader)):
        return None
    ordered = [maker for maker in makers if isinstance(maker, Ordered) and maker.of_outputs]
    if isinstance(reader, Ordered) and not reader.of_outputs:
        order = reader.make_order()
    elif ordered:
        order = ordered[0].make_order().argsort()
    else:
        return None
    return None if torch.equal(order, torch.arange(len(order), device=order.device)) else order


@torch.no_grad()
def passages(model: PreTrainedModel) -> list[Passage]:
    """Where channels may be reordered: the reader's input then is the former one, reordered too."""
    linears = dict(outer_linears(model))
    tokens = torch.arange(4, device=next(model.parameters()).device)[None]  # equal ones would hide what attention mixes
    calls: list[tuple[str, Tensor]] = []
    hooks = (one.register_forward_pre_hook(_note(calls, name)) for name, one in linears.items())
    with attached(hooks):
        model(tokens, use_cache=False)
    inputs = dict(calls)
    candidates = [passage for passage in candidates_of(calls, linears) if passage.reader in inputs]
    confirmed: list[Passage] = []
    with attached(_trials(linears, candidates, inputs, confirmed)):
        model(tokens, use_cache=False)
    return confirmed


def outer_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every dense linear and form by name, but not the linears inside a form."""
    forms = [name for name, module in model.named_modules() if isinstance(module, Form)]
    inside = tuple(f"{name}." for name in forms)
    for name, module in model.named_modules():
        if (is_linear(module) or isinstance(module, Form)) and not name.startswith(inside):
            yield name, module


def candidates_of(calls: list[tuple[str, Tensor]], linears: dict[str, nn.Module]) -> list[Passage]:
    """Neighbours in the order of the calls whose widths fit; none that is called more than once."""
    names = [name for name, _ in calls]
    groups: list[list[str]] = []
    for (_, before), (name, x) in pairwise([("", torch.empty(0)), *calls]):
        if groups and x is before:
            groups[-1].append(name)
        else:
            groups.append([name])
    found = []
    for makers, readers in pairwise(groups):
        widths = {sizes(linears[name])[0] for name in makers}
        once = all(names.count(name) == 1 for name in (*makers, *readers))
        if once and len(readers) == 1 and widths == {sizes(linears[readers[0]])[1]}:
            found.append(Passage(makers, readers[0]))
    return found


def sizes(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a dense linear or a form."""
    return (module.out_features, module.in_features) if isinstance(module, Form) else shape_of(module)


def _note(calls: list[tuple[str, Tensor]], name: str) -> Any:
    return lambda module, args: calls.append((name, args[0]))


def _trials(
    linears: dict[str, nn.Module], candidates: list[Passage], inputs: dict[str, Tensor], confirmed: list[Passage]
) -> Iterator[Any]:
    """Hooks that reorder what the makers give, compare what reaches the reader, and hand it what it had before."""
    generator = torch.Generator().manual_seed(0)
    for passage in candidates:
        was = inputs[passage.reader]
        order = torch.randperm(was.shape[-1], generator=generator).to(was.device)

        def reorder(module: nn.Module, args: Any, output: Tensor, order: Tensor = order) -> Tensor:
            return output.index_select(-1, order)

        def compare(
            module: nn.Module, args: Any, passage: Passage = passage, was: Tensor = was, order: Tensor = order
        ) -> Any:
            if torch.allclose(args[0], was.index_select(-1, order), rtol=1e-3, atol=1e-5):
                confirmed.append(passage)
            return was, *args[1:]

        for name in passage.makers:
            yield linears[name].register_forward_hook(reorder)
        yield linears[passage.reader].register_forward_pre_hook(compare)
