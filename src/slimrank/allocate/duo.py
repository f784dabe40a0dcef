"""Duo-SVD's module level (arXiv 2510.19385): each module's damage measured at several shares, then a knapsack."""

from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.budget import cost, fit_ranks
from slimrank.allocate.knapsack import knapsack
from slimrank.allocate.measure import Damage

Share = Annotated[float, Field(gt=0, le=1)]


class MeasuredModules(Allocator):
    """Minimise sum_j d_j(p_j), d_j(p) = KL_j(p) - KL_base, within the budget (METHODS, section 4).

    KL_base is KL(dense || model) with every module at the target share, KL_j(p) with module j alone at share p of
    `grid`, p = 1 being dense, on `windows` calibration windows. Measured with plain truncation, whatever the form.
    units: parts of the budget in the knapsack's dynamic programming.
    """

    name: Literal["measured_modules"] = "measured_modules"
    windows: int = Field(32, ge=1)
    grid: Annotated[tuple[Share, ...], Len(1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    units: int = Field(50_000, ge=1)

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks of the knapsack's optimum."""
        names = list(problem.spectrum.linears)
        damage = Damage(problem.session, fit_ranks(problem, dict.fromkeys(names, problem.keep)), windows=self.windows)
        damages: dict[str, dict[int | None, float]] = {}
        for name in problem.session.track(names, "measuring", len(names)):
            options = dict.fromkeys([damage.base[name], *(self._rank(problem, name, share) for share in self.grid)])
            damages[name] = {rank: damage.kl({name: rank}) for rank in options}
        note = (
            f"{damage.passes} block passes over {self.windows} windows measured what {damage.unshared} would unshared."
        )
        return Allocation(choose(problem, damages, self.units), (note,))

    @staticmethod
    def _rank(problem: Problem, name: str, share: float) -> int | None:
        rows, columns = problem.spectrum.linears[name].shape
        rank = problem.form.rank_for((rows, columns), share * rows * columns + 1e-6)
        return None if share == 1 else max(rank, 1)


def choose(problem: Problem, damages: dict[str, dict[int | None, float]], units: int) -> Ranks:
    """Of each module's measured ranks the ones with the least summed damage within the budget."""
    costs = [[cost(problem, name, rank) for rank in options] for name, options in damages.items()]
    options = knapsack(costs, [list(losses.values()) for losses in damages.values()], problem.budget, units=units)
    return {name: list(losses)[option] for (name, losses), option in zip(damages.items(), options, strict=True)}
