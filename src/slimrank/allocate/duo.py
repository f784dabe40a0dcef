"""Duo-SVD's module level (arXiv 2510.19385): each module's damage measured at several shares, then a knapsack."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.budget import rank_at, same_share
from slimrank.allocate.knapsack import knapsack
from slimrank.allocate.measure import Damage
from slimrank.model.units import Unit

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass
class Scan:
    """One module's damage by option, measured where asked for. ranks: its options, ascending, dense (None) last."""

    ranks: list[int | None]
    base: int | None
    measure: Callable[[int | None], float]
    known: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Measure both ends, and the base, which is measured already."""
        for option in {0, self.ranks.index(self.base), len(self.ranks) - 1}:
            self.known[option] = self.measure(self.ranks[option])

    def least(self) -> dict[int | None, float]:
        """By rank what is known, or the least that it can be: the lower one of the neighbours'."""
        return {rank: min(self.known[end] for end in self._ends(option)) for option, rank in enumerate(self.ranks)}

    def measured(self) -> dict[int | None, float]:
        """By rank what is known."""
        return {self.ranks[option]: loss for option, loss in sorted(self.known.items())}

    def halve(self, rank: int | None) -> None:
        """Measure the middle of the gap that a rank is in."""
        low, high = self._ends(self.ranks.index(rank))
        self.known[(low + high) // 2] = self.measure(self.ranks[(low + high) // 2])

    def _ends(self, option: int) -> tuple[int, int]:
        """The nearest measured options, itself twice if it is one."""
        return max(k for k in self.known if k <= option), min(k for k in self.known if k >= option)


class MeasuredModules(Allocator):
    """Minimise sum_j d_j(p_j), d_j(p) = KL_j(p) - KL_base, within the budget (METHODS, section 4).

    KL_base is KL(dense || model) with every module at the target share, KL_j(p) with module j alone at share p of
    `grid`, p = 1 being dense, on `windows` calibration windows. Measured with plain truncation, whatever the form.
    units: parts of the budget in the knapsack's dynamic programming. tolerance: a measurement is left out where it
    could no longer lower the sum by more than this part of KL_base, damage taken to fall with the share; 0 leaves
    out only what cannot matter at all.
    """

    name: Literal["measured_modules"] = "measured_modules"
    windows: int = Field(32, ge=1)
    grid: Annotated[tuple[Share, ...], Len(1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    units: int = Field(50_000, ge=1)
    tolerance: float = Field(0.005, ge=0)

    @property
    def measures(self) -> bool:
        """It does."""
        return True

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks of the knapsack's optimum."""
        damage = Damage(problem.spectra, same_share(problem), windows=self.windows)
        scans = {unit: self._scan(problem, damage, unit) for unit in problem.curves}
        for unit in problem.run.track(list(scans), "measuring", len(scans)):
            scans[unit].start()
        ranks = settle(problem, scans, self.units, self.tolerance * damage.kl({}))
        models = 2 + sum(len(scan.ranks) for scan in scans.values())  # the dense one and the base beside every option
        return Allocation(ranks, (damage.account(models),))

    def _scan(self, problem: Problem, damage: Damage, unit: Unit) -> Scan:
        base = damage.base[unit]
        ranks = {base, *(rank_at(problem, unit, share) for share in self.grid)}
        return Scan(sorted(ranks, key=lambda rank: (rank is None, rank)), base, lambda rank: damage.kl({unit: rank}))


def settle(problem: Problem, scans: dict[Unit, Scan], units: int, tolerance: float) -> Ranks:
    """The best assignment of measured options, once none with unmeasured ones can be better by more than `tolerance`.

    Each round solves the knapsack with the least that every damage can be, and halves the gaps that it chose from.
    """
    while True:
        least = {unit: scan.least() for unit, scan in scans.items()}
        measured = {unit: scan.measured() for unit, scan in scans.items()}
        hoped, had = choose(problem, least, units), choose(problem, measured, units)
        open_gaps = [unit for unit, rank in hoped.items() if rank not in measured[unit]]
        gap = sum(measured[unit][had[unit]] - least[unit][hoped[unit]] for unit in scans)
        if not open_gaps or gap <= tolerance:
            return had
        for unit in problem.run.track(open_gaps, "measuring", len(open_gaps)):
            scans[unit].halve(hoped[unit])


def choose(problem: Problem, damages: dict[Unit, dict[int | None, float]], units: int) -> Ranks:
    """Of each module's measured ranks the ones with the least summed damage within the budget."""
    costs = [[problem.cost(unit, rank) for rank in options] for unit, options in damages.items()]
    options = knapsack(costs, [list(losses.values()) for losses in damages.values()], problem.budget, units=units)
    return {unit: list(losses)[option] for (unit, losses), option in zip(damages.items(), options, strict=True)}
