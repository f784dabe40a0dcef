"""SVD-LLM V2's allocation (arXiv 2503.12340): within each type of matrix, low losses remove more."""

import math
from typing import Literal

import torch
from torch import Tensor

from slimrank.allocate.base import Allocation, Allocator, Problem
from slimrank.allocate.budget import fit_ranks
from slimrank.allocate.shares import scaled_to
from slimrank.model.units import Unit


class TypeGroups(Allocator):
    """R_i = |group| R g_i / sum g with g_i = 1 / log(L_i), R the removed share, L_i the loss at the uniform rank.

    A group is the linears of one type, over all blocks and experts, and its mean removed share is R. L_i =
    |W X - W' X|_F over all calibration tokens. Shares are clipped at 1, and the others of the group are scaled to make
    up for it.
    """

    name: Literal["type_groups"] = "type_groups"

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks from each group's inverse log losses, with a note of the groups that were rescaled."""
        shares: dict[Unit, float] = {}
        rescaled: list[str] = []
        for role, group in type_groups(problem).items():
            weights, factor = inverse_logs(torch.tensor([uniform_loss(problem, unit) for unit in group]).double())
            sizes = torch.tensor([unit.parameters for unit in group]).double()
            removed = scaled_to(weights, sizes, 1 - problem.keep)
            shares |= dict(zip(group, (1 - removed).tolist(), strict=True))
            if factor != 1:
                rescaled.append(f"{role} (x {factor:.3g})")
        note = f"1 / log(loss) needs losses above e: those of {', '.join(rescaled)} were rescaled to a minimum of e."
        return Allocation(fit_ranks(problem, shares), (note,) if rescaled else ())


def type_groups(problem: Problem) -> dict[str, list[Unit]]:
    """The linears by type: their role, the same for all experts of a mixture."""
    groups: dict[str, list[Unit]] = {}
    for unit in problem.curves:
        groups.setdefault(unit.type, []).append(unit)
    return groups


def uniform_loss(problem: Problem, unit: Unit) -> float:
    """L_i: the root of the sum of the squared singular values beyond the rank for the share `keep`."""
    return problem.curves[unit].loss(problem.rank_within(unit, problem.keep)) ** 0.5


def inverse_logs(losses: Tensor) -> tuple[Tensor, float]:
    """1 / log(c L) for losses L (k,), and c: 1, or e / min(L) if some L <= e, since 1 / log has a pole at 1.

    Losses below 1e-12 of the largest are raised to that.
    """
    if losses.max() <= 0:
        return torch.ones_like(losses), 1.0
    losses = losses.clamp_min(1e-12 * losses.max())
    smallest = losses.min().item()
    factor = math.e / smallest if smallest <= math.e else 1.0
    return 1 / (losses.log() + math.log(factor)), factor
