"""Duo-SVD's module level (arXiv 2510.19385): each module's damage measured at several shares, then a knapsack."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.budget import cost, fit_ranks, rank_at
from slimrank.allocate.knapsack import knapsack
from slimrank.allocate.measure import Damage

Share = Annotated[float, Field(gt=0, le=1)]


class MeasuredModules(Allocator):
    """Minimise sum_j d_j(p_j), d_j(p) = KL_j(p) - KL_base, within the budget (METHODS, section 4).

    KL_base is KL(dense || model) with every module at the target share, KL_j(p) with module j alone at share p of
    `grid`, p = 1 being dense, on `windows` calibration windows. Measured with plain truncation, whatever the form.
    units: parts of the budget in the knapsack's dynamic programming. tolerance: shares between two whose KL differ by
    less than this part of KL_base aren't measured but interpolated; 0 measures all.
    """

    name: Literal["measured_modules"] = "measured_modules"
    windows: int = Field(32, ge=1)
    grid: Annotated[tuple[Share, ...], Len(1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    units: int = Field(50_000, ge=1)
    tolerance: float = Field(0.005, ge=0)

    @property
    def whole_model(self) -> bool:
        """It measures."""
        return True

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks of the knapsack's optimum."""
        names = list(problem.spectrum.linears)
        damage = Damage(problem.session, fit_ranks(problem, dict.fromkeys(names, problem.keep)), windows=self.windows)
        tolerance = self.tolerance * damage.kl({})
        damages: dict[str, dict[int | None, float]] = {}
        for name in problem.session.track(names, "measuring", len(names)):
            base = damage.base[name]
            options = {base, *(rank_at(problem, name, share) for share in self.grid)}
            ranks = sorted(options, key=lambda rank: (rank is None, rank))
            losses = interpolated(
                cache(lambda i, name=name, ranks=ranks: damage.kl({name: ranks[i]})),
                sorted({0, ranks.index(base), len(ranks) - 1}),
                tolerance,
            )
            damages[name] = dict(zip(ranks, losses, strict=True))
        models = 2 + sum(map(len, damages.values()))  # the dense one and the base beside every option
        return Allocation(choose(problem, damages, self.units), (damage.account(models),))


def interpolated(loss: Callable[[int], float], knots: Sequence[int], tolerance: float) -> list[float]:
    """loss(i) for every i from the first to the last of `knots`, ascending, measured by halving the gaps between them.

    Where the losses at both ends of a gap are within `tolerance`, what is between them is linearly interpolated.
    """
    low, high = knots[0], knots[-1]
    if len(knots) > 2:
        return [*interpolated(loss, knots[:2], tolerance), *interpolated(loss, knots[1:], tolerance)[1:]]
    if high - low < 2 or abs(loss(high) - loss(low)) <= tolerance:
        step = (loss(high) - loss(low)) / max(high - low, 1)
        return [loss(low) + step * i for i in range(high - low + 1)]
    return interpolated(loss, [low, (low + high) // 2, high], tolerance)


def choose(problem: Problem, damages: dict[str, dict[int | None, float]], units: int) -> Ranks:
    """Of each module's measured ranks the ones with the least summed damage within the budget."""
    costs = [[cost(problem, name, rank) for rank in options] for name, options in damages.items()]
    options = knapsack(costs, [list(losses.values()) for losses in damages.values()], problem.budget, units=units)
    return {name: list(losses)[option] for (name, losses), option in zip(damages.items(), options, strict=True)}
