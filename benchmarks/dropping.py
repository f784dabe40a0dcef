"""Whole experts dropped from a mixture: those that the fewest calibration tokens reach, and their rows of the router.

What is left is a smaller model of the same class: its router scores the experts that are left alone, and so no longer
chooses the dropped ones.
"""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.evaluate.models import linear_parameters
from slimrank.forms.experts import layout_of
from slimrank.model.load import Loaded
from slimrank.model.modules import attached

BATCH = 8  # windows


def mixtures(model: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """The name of each module of fused experts, the module, and its router, which has a row of weights an expert."""
    for name, block in model.named_modules():
        for own, experts in block.named_children():
            if layout := layout_of(experts):
                routers = [
                    child
                    for child in block.children()
                    if child is not experts and len(getattr(child, "weight", ())) == layout.experts
                ]
                if len(routers) != 1 or not hasattr(routers[0], "top_k"):
                    raise ValueError(f"The router of {name}.{own} was not found.")
                yield f"{name}.{own}", experts, routers[0]


@torch.no_grad()
def routed_tokens(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """By module of experts, how many tokens of these windows (count, tokens) each expert gets, (experts,) int64."""
    counts: dict[str, Tensor] = {}

    def count(name: str, experts: int) -> Any:
        def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found = torch.bincount(args[1].reshape(-1), minlength=experts)
            counts[name] = counts.get(name, torch.zeros_like(found)) + found

        return watch

    modules = {name: (experts, len(router.weight)) for name, experts, router in mixtures(model)}
    with attached(experts.register_forward_pre_hook(count(name, n)) for name, (experts, n) in modules.items()):
        for batch in windows.split(BATCH):
            model(input_ids=batch, use_cache=False)
    return counts


def left_over(counts: Mapping[str, Tensor], least: int, dropped: int, *, by_layer: bool) -> dict[str, list[int]]:
    """By module, the experts that stay when the `dropped` ones of the fewest tokens go, `least` staying in each.

    by_layer: as many go from each module, rounded up; else the fewest tokens over all modules decide.
    """
    found = {name: list(range(len(own))) for name, own in counts.items()}
    order = sorted((tokens, name, e) for name, own in counts.items() for e, tokens in enumerate(own.tolist()))
    each = ceil(dropped / len(counts)) if by_layer else max(map(len, found.values()))
    room = each * len(counts) if by_layer else dropped
    for _, name, expert in order:
        own = found[name]
        if room and len(own) > max(least, len(counts[name]) - each):
            own.remove(expert)
            room -= 1
    if room:
        raise ValueError(f"{dropped} experts cannot be dropped with {least} left in every layer.")
    return found


@torch.no_grad()
def drop(model: nn.Module, left: Mapping[str, list[int]]) -> None:
    """Take all other experts and their rows of the routers out of the model, in place."""
    for name, experts, router in list(mixtures(model)):
        index = torch.tensor(left[name])
        for module in (experts, router):
            for key, parameter in module.named_parameters(recurse=False):
                module.register_parameter(key, nn.Parameter(parameter[index], requires_grad=False))
            module.num_experts = len(index)


def drop_least_used(loaded: Loaded, windows: Tensor, keep: float, *, by_layer: bool) -> dict[str, list[int]]:
    """Drop experts until at most the share `keep` of the linears' parameters stays; returns those that stay."""
    dense, found = linear_parameters(loaded), list(mixtures(loaded.model))
    sizes = {sum(p.numel() for p in experts.parameters()) // len(router.weight) for _, experts, router in found}
    least = max(router.top_k for _, _, router in found)
    counts = routed_tokens(loaded.model, windows)
    left = left_over(counts, least, ceil((1 - keep) * dense / min(sizes)), by_layer=by_layer)
    drop(loaded.model, left)
    return left
