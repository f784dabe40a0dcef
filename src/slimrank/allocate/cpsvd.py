"""CPSVD's shares (arXiv 2510.19385v1): blocks by the cosine of input and output, matrices by their loss."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.allocate.base import Allocation, Allocator, Problem
from slimrank.allocate.budget import fit_ranks
from slimrank.allocate.shares import scaled_to
from slimrank.calibrate.needs import Needs
from slimrank.model.units import Unit


class BlockSimilarity(Allocator):
    """Block b removes L R softmax_b(-(1 - cos(input, output)) / temperature), with L blocks and mean removed share R.

    modules: distribute a block's share over its linears by their relative loss (see module_weights), or evenly.
    """

    name: Literal["block_similarity"] = "block_similarity"

    temperature: Annotated[float, Field(gt=0)] = 0.2
    modules: bool = True

    @property
    def needs(self) -> Needs:
        """Block statistics, for the cosine of each block's input and output."""
        return Needs(blocks=True)

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks from the removed shares; a share is clipped at 1 and the others are scaled to make up for it."""
        blocks = problem.by_block()
        seen = [problem.spectra.evidence.moments.blocks[index] for index in blocks]
        cosines = torch.tensor([block.cosine.item() / block.tokens for block in seen]).double()
        removed = scaled_to(
            torch.softmax(-(1 - cosines) / self.temperature, 0),
            torch.tensor([float(sum(unit.parameters for unit in units)) for units in blocks.values()]).double(),
            1 - problem.keep,
        )
        shares: dict[Unit, float] = {}
        for units, share in zip(blocks.values(), removed.tolist(), strict=True):
            shares |= self._within(problem, units, share)
        return Allocation(fit_ranks(problem, {unit: 1 - share for unit, share in shares.items()}))

    def _within(self, problem: Problem, units: list[Unit], removed: float) -> dict[Unit, float]:
        if not self.modules:
            return dict.fromkeys(units, removed)
        losses = torch.tensor([relative_loss(problem, unit, 1 - removed) for unit in units]).double()
        sizes = torch.tensor([float(unit.parameters) for unit in units]).double()
        shares = scaled_to(module_weights(losses, removed), sizes, removed)
        return dict(zip(units, shares.tolist(), strict=True))


def relative_loss(problem: Problem, unit: Unit, keep: float) -> float:
    """Squared error at the rank for `keep` over that at rank 0."""
    losses = problem.curves[unit].losses()
    rank = problem.rank_within(unit, keep)
    return (losses[rank] / losses[0].clamp_min(1e-300)).item()


def module_weights(losses: Tensor, removed: float) -> Tensor:
    """exp(i / (1 + 10 tan(pi removed / 2))), i (k,) the place by descending loss: low losses remove more."""
    ranks = losses.argsort(descending=True, stable=True).argsort()
    return (ranks / (1 + 10 * math.tan(math.pi * removed / 2))).double().exp()
