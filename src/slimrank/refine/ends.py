"""The embedding and the head rounded to nearest, once everything between them is final."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.factorize.rounded import dense_layer
from slimrank.forms.embedding import Embedding, put_embedding
from slimrank.forms.linear import weight_of
from slimrank.model.modules import set_module
from slimrank.rounding.feedback import round_weight
from slimrank.rounding.grid import Grid, Rounded

PIECE = 2**22  # numbers that are rounded at a time


@torch.no_grad()
def round_ends(model: PreTrainedModel, grids: Mapping[str, Grid]) -> None:
    """Replace plain embeddings and heads, by name, by layers on these grids; a tied head follows its embedding."""
    for name, grid in grids.items():
        plain = model.get_submodule(name)
        if isinstance(plain, nn.Embedding):
            put_embedding(model, name, rounded_embedding(plain, grid.bits, grid.group))
        else:
            set_module(model, name, dense_layer(plain, nearest(weight_of(plain), grid)))


@torch.no_grad()
def rounded_embedding(plain: nn.Embedding, bits: int, group: int | None = None) -> Embedding:
    """The embedding in whole numbers, to nearest; group: inputs that share a scale, as Form.use_bits."""
    made = Embedding(plain, bits, group)
    rounded = nearest(plain.weight, Grid(bits, made.per_scale))
    made.table.store(rounded.numbers, rounded.scale)
    return made


def end_grid(bits: int) -> Grid:
    """The grid of embedding and head: a scale in every row of 8 bits, in every 32 inputs of fewer."""
    return Grid(bits) if bits == 8 else Grid(bits, 32)


def nearest(weight: Tensor, grid: Grid) -> Rounded:
    """W (m, n) rounded to nearest, some rows at a time."""
    parts = [round_weight(part, grid) for part in weight.split(max(1, PIECE // weight.shape[1]))]
    return Rounded(grid, torch.cat([part.numbers for part in parts]), torch.cat([part.scale for part in parts]))
