"""Layers of whole numbers, from weights that were rounded."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from slimrank.forms import Dense, Form, LowRank
from slimrank.forms.linear import bias_of, weight_of
from slimrank.rounding.grid import Grid, Rounded
from slimrank.rounding.resolve import RoundedFactors

F = TypeVar("F", bound=Form)


def dense_layer(dense: nn.Module, rounded: Rounded) -> Dense:
    """The layer of a linear whose weight was rounded."""
    return _filled(Dense.shell(dense, entry_of(rounded.grid)), dense, {"whole": rounded})


def low_rank_layer(dense: nn.Module, rounded: RoundedFactors) -> LowRank:
    """The layer of a linear that two rounded factors replace."""
    entry = entry_of(rounded.up.grid, len(rounded.down.numbers))
    return _filled(LowRank.shell(dense, entry), dense, {"down": rounded.down, "up": rounded.up})


def entry_of(grid: Grid, rank: int | None = None) -> dict[str, Any]:
    """The entry of a layer on a grid: low rank, or dense where there is no rank."""
    form: dict[str, Any] = {"form": Dense.form} if rank is None else {"form": LowRank.form, "rank": rank}
    return {**form, "bits": grid.bits, **({} if grid.group is None else {"group": grid.group})}


@torch.no_grad()
def _filled(layer: F, dense: nn.Module, factors: Mapping[str, Rounded]) -> F:
    for name, factor in layer.present_factors().items():
        factor.store(factors[name].numbers, factors[name].scale.to(weight_of(dense).dtype))
    bias = bias_of(dense)
    if bias is not None:
        layer.get_parameter(layer.bias_name).copy_(bias)
    return layer
