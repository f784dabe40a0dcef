"""DipSVD's heuristic (arXiv 2506.20353): shares of blocks by gradient sensitivity and effective rank."""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from slimrank.allocate.base import Allocation, Allocator, Problem
from slimrank.allocate.budget import fit_ranks
from slimrank.allocate.shares import min_max, scaled_to
from slimrank.calibrate.moments import OutputMoments
from slimrank.calibrate.needs import Needs
from slimrank.model.units import Unit
from slimrank.numerics.threads import one_thread

Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[tuple[Share, Share], AfterValidator(lambda clip: ascending(clip))]
Direction = Literal["paper", "released"]
Sensitivity = Literal["gradient", "fisher"]


class BlockImportance(Allocator):
    """One share for each block, from Q = s^beta u^(1-beta): s its gradient sensitivity, u its output's effective rank.

    Q is mapped to keep +- `spread`, clipped to `clip`, and scaled to the budget. direction: whether blocks of high
    sensitivity and rank keep more (`paper`) or less (`released`, as the authors' code). energy: the share of the sum of
    singular values that defines the effective rank. sensitivity: see the function `sensitivity`. segments: see
    `balanced`.
    """

    name: Literal["block_importance"] = "block_importance"

    beta: Share = 0.3
    direction: Direction = "paper"
    sensitivity: Sensitivity = "gradient"
    segments: Annotated[int, Field(ge=1)] = 1
    energy: Share = 0.95
    spread: Share = 0.1
    clip: Interval = (0.3, 0.98)

    @property
    def needs(self) -> Needs:
        """Gradients of the weights, and the Grams of the blocks' outputs."""
        return Needs(gradients=True, of_weights=True, blocks=True)

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks from the blocks' shares."""
        blocks, moments = problem.by_block(), problem.spectra.evidence.moments
        sensitivities = torch.tensor([sum(self._sensitivity(problem, u) for u in units) for units in blocks.values()])
        ranks = torch.tensor([effective_rank(moments.blocks[index].gram(), self.energy) for index in blocks])
        sensitivities = balanced(sensitivities.double(), self.segments)
        scores = importance(sensitivities, ranks.double(), self.beta, self.direction)
        sizes = [float(sum(unit.parameters for unit in units)) for units in blocks.values()]
        kept = block_shares(scores, torch.tensor(sizes).double(), problem.keep, self.spread, self.clip).tolist()
        shares = {unit: share for share, units in zip(kept, blocks.values(), strict=True) for unit in units}
        return Allocation(fit_ranks(problem, shares), self._notes(problem.keep, scores))

    def _sensitivity(self, problem: Problem, unit: Unit) -> float:
        outputs = problem.spectra.evidence.output_of(unit.leader)
        return sensitivity(outputs, problem.spectra.weight(unit), self.sensitivity)

    def _notes(self, keep: float, scores: Tensor) -> tuple[str, ...]:
        low, high = self.clip
        if not low < keep < high:
            return (f"Shares are uniform: keep {keep} is not inside allocate.clip ({low}, {high}); widen it.",)
        if scores.max() == scores.min():
            return ("Shares are uniform: DipSVD's score is the same for every block.",)
        return ()


def ascending(interval: tuple[float, float]) -> tuple[float, float]:
    """The interval unchanged; raises a ValueError unless its first end is the lower one."""
    if interval[0] >= interval[1]:
        raise ValueError("the first share should be below the second")
    return interval


def sensitivity(outputs: OutputMoments, weight: Tensor, kind: Sensitivity = "gradient") -> float:
    """The size of the loss's gradient in one weight W, relative to |W|_F.

    gradient: |dL/dW|_F / |W|_F, L the loss of all calibration tokens, as in DipSVD. fisher: the root of the empirical
    Fisher's trace instead of |dL/dW|_F, sqrt(sum over windows w of |dL_w/dW|_F^2), so that windows do not cancel.
    """
    norm = outputs.gradient_norm if kind == "gradient" else outputs.fisher_rows.sum().sqrt().item()
    return norm / max(weight.double().norm().item(), 1e-300)


def effective_rank(gram: Tensor, energy: float = 0.95) -> int:
    """The least k such that the k largest singular values of X sum to `energy` of all; gram = X X^T (d, d)."""
    with one_thread(gram):
        values = torch.linalg.eigvalsh(gram.double()).clamp_min(0).sqrt().flip(0)
    shares = values.cumsum(0) / values.sum()
    return min(int((shares < energy).sum()) + 1, len(values))


def balanced(sensitivities: Tensor, segments: int) -> Tensor:
    """Sensitivities (blocks,) normalised to sum 1 in each of `segments` equal parts of the depth."""
    ends = [len(sensitivities) * number // segments for number in range(segments + 1)]
    parts = [sensitivities[start:end] for start, end in pairwise(ends)]
    return torch.cat([part / part.sum().clamp_min(1e-300) for part in parts])


def importance(sensitivities: Tensor, ranks: Tensor, beta: float, direction: Direction) -> Tensor:
    """Q (blocks,) = s^beta u^(1-beta), with s and u min-max normalised.

    paper: s from S and u from R. released: s from 1/S and u from -R.
    """
    if direction == "released":
        sensitivities = 1 / sensitivities.clamp_min(max(1e-12 * sensitivities.max().item(), 1e-300))
        ranks = -ranks
    return min_max(sensitivities) ** beta * min_max(ranks) ** (1 - beta)


def block_shares(scores: Tensor, sizes: Tensor, keep: float, spread: float, clip: tuple[float, float]) -> Tensor:
    """The share that each block keeps: Q mapped to keep +- spread, clipped, then scaled to mean `keep` over `sizes`."""
    low, high = clip
    mapped = keep + spread * (2 * min_max(scores) - 1)
    return scaled_to(mapped.clamp(low, high), sizes, keep, low, high)
