"""CPSVD's shares (arXiv 2510.19385, version 1): blocks by how little they turn their input, matrices by their loss."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.allocate.base import Allocation, Allocator, Problem
from slimrank.allocate.budget import fit_ranks
from slimrank.allocate.shares import scaled_to
from slimrank.spectrum.decomposition import LinearSpectrum


class BlockSimilarity(Allocator):
    """Removed share of a block: L R softmax(-(1 - cos(block in, block out)) / t) over the L blocks, t the temperature.

    modules: spread a block's share over its linears by their relative loss (see module_weights), or give all the same.
    """

    name: Literal["block_similarity"] = "block_similarity"

    temperature: Annotated[float, Field(gt=0)] = 0.2
    modules: bool = True

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks from the removed shares; where one would pass 1, the others bear the difference."""
        blocks: dict[int, dict[str, LinearSpectrum]] = {}
        for name, spectrum in problem.spectrum.linears.items():
            blocks.setdefault(spectrum.block, {})[name] = spectrum
        seen = [problem.session.moments.blocks[index] for index in blocks]
        cosines = torch.tensor([block.cosine / block.tokens for block in seen]).double()
        removed = scaled_to(
            torch.softmax(-(1 - cosines) / self.temperature, 0),
            torch.tensor([float(sum(_size(s) for s in block.values())) for block in blocks.values()]).double(),
            1 - problem.keep,
        )
        shares: dict[str, float] = {}
        for block, share in zip(blocks.values(), removed.tolist(), strict=True):
            shares |= self._within(problem, block, share)
        return Allocation(fit_ranks(problem, {name: 1 - share for name, share in shares.items()}))

    def _within(self, problem: Problem, block: dict[str, LinearSpectrum], removed: float) -> dict[str, float]:
        if not self.modules:
            return dict.fromkeys(block, removed)
        losses = torch.tensor([relative_loss(problem, s, 1 - removed) for s in block.values()]).double()
        sizes = torch.tensor([float(_size(s)) for s in block.values()]).double()
        shares = scaled_to(module_weights(losses, removed), sizes, removed)
        return dict(zip(block, shares.tolist(), strict=True))


def relative_loss(problem: Problem, spectrum: LinearSpectrum, keep: float) -> float:
    """The squared error's share at the rank for `keep`."""
    losses = spectrum.losses()
    rank = problem.form.rank_for(spectrum.shape, keep * _size(spectrum) + 1e-6)
    return (losses[rank] / losses[0].clamp_min(1e-300)).item()


def module_weights(losses: Tensor, removed: float) -> Tensor:
    """exp(rank / (1 + 10 tan(pi removed / 2))): rank 0 for the largest loss, so that what loses least gives most."""
    ranks = losses.argsort(descending=True, stable=True).argsort()
    return (ranks / (1 + 10 * math.tan(math.pi * removed / 2))).double().exp()


def _size(spectrum: LinearSpectrum) -> int:
    return math.prod(spectrum.shape)
