"""Duo-SVD's module level (arXiv 2510.19385): KL measured for each linear at several shares, then a knapsack."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.budget import rank_at, same_share
from slimrank.allocate.knapsack import knapsack
from slimrank.allocate.measure import Damage, holds
from slimrank.calibrate.needs import Holds, Work
from slimrank.model.units import Unit
from slimrank.texts.windows import Windows

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass
class Scan:
    """One linear's measured KL by option; ranks: its options, ascending, dense (None) last.

    base: the rank it has in the base model; measure: gives the KL of a rank; known: KL by the option's index.
    """

    ranks: list[int | None]
    base: int | None
    measure: Callable[[int | None], float]
    known: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Measure the lowest rank, dense, and the base rank (whose measurement is cached)."""
        for option in {0, self.ranks.index(self.base), len(self.ranks) - 1}:
            self.known[option] = self.measure(self.ranks[option])

    def least(self) -> dict[int | None, float]:
        """A lower bound of the KL at every rank: measured, or the lower of the nearest measured neighbours'."""
        return {rank: min(self.known[end] for end in self._ends(option)) for option, rank in enumerate(self.ranks)}

    def measured(self) -> dict[int | None, float]:
        """The KL of the ranks that were measured."""
        return {self.ranks[option]: loss for option, loss in sorted(self.known.items())}

    def halve(self, rank: int | None) -> None:
        """Measure halfway between the measured neighbours of a rank."""
        low, high = self._ends(self.ranks.index(rank))
        self.known[(low + high) // 2] = self.measure(self.ranks[(low + high) // 2])

    def _ends(self, option: int) -> tuple[int, int]:
        """The nearest measured options at or below and at or above one."""
        return max(k for k in self.known if k <= option), min(k for k in self.known if k >= option)


class MeasuredModules(Allocator):
    """Minimise sum_j (KL_j(p_j) - KL_base) within the budget.

    KL_base is KL(dense || model) with every linear at the share `keep`, KL_j(p) the same with linear j moved to share p
    of `grid` (1: dense), on `windows` calibration windows, by plain truncation whatever the form. units: steps of the
    budget in the knapsack's dynamic programming. tolerance: measuring stops once it can lower the sum by at most this
    part of KL_base, if KL falls with the share; 0 leaves out only measurements that cannot change the result.
    """

    name: Literal["measured_modules"] = "measured_modules"
    windows: int = Field(32, ge=1)
    grid: Annotated[tuple[Share, ...], Len(1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    units: int = Field(50_000, ge=1)
    tolerance: float = Field(0.005, ge=0)

    @property
    def measures(self) -> bool:
        """True: it measures KL divergences."""
        return True

    def work(self, windows: Windows, linears: int) -> Work:
        """About a third of the options, each from its block on: the others are left out or shared."""
        models = linears * len(self.grid) / 3
        return Work(models * windows.calibration[: self.windows].numel(), head=1)

    def holds(self, windows: Windows) -> Holds:
        """The states before every block, and the dense model's probabilities."""
        return holds(windows.calibration[: self.windows])

    def allocate(self, problem: Problem) -> Allocation:
        """The ranks of the knapsack's optimum, with a note on what the measurements took."""
        damage = Damage(problem.spectra, same_share(problem), windows=self.windows)
        scans = {unit: self._scan(problem, damage, unit) for unit in problem.curves}
        for unit in problem.run.track(list(scans), "measuring", len(scans)):
            scans[unit].start()
        ranks = settle(problem, scans, self.units, self.tolerance * damage.kl({}))
        models = 2 + sum(len(scan.ranks) for scan in scans.values())  # plus the dense and the base model
        return Allocation(ranks, (damage.account(models),))

    def _scan(self, problem: Problem, damage: Damage, unit: Unit) -> Scan:
        base = damage.base[unit]
        ranks = {base, *(rank_at(problem, unit, share) for share in self.grid)}
        return Scan(sorted(ranks, key=lambda rank: (rank is None, rank)), base, lambda rank: damage.kl({unit: rank}))


def settle(problem: Problem, scans: dict[Unit, Scan], units: int, tolerance: float) -> Ranks:
    """The best assignment of measured options, within `tolerance` (nats) of the best of all options.

    Each round solves the knapsack with lower bounds for unmeasured options and measures in the gaps that it chose.
    """
    while True:
        least = {unit: scan.least() for unit, scan in scans.items()}
        measured = {unit: scan.measured() for unit, scan in scans.items()}
        bound, best = choose(problem, least, units), choose(problem, measured, units)
        open_gaps = [unit for unit, rank in bound.items() if rank not in measured[unit]]
        gap = sum(measured[unit][best[unit]] - least[unit][bound[unit]] for unit in scans)
        if not open_gaps or gap <= tolerance:
            return best
        for unit in problem.run.track(open_gaps, "measuring", len(open_gaps)):
            scans[unit].halve(bound[unit])


def choose(problem: Problem, damages: dict[Unit, dict[int | None, float]], units: int) -> Ranks:
    """One of each linear's ranks, such that the summed KL is least within the budget."""
    costs = [[problem.cost(unit, rank) for rank in options] for unit, options in damages.items()]
    options = knapsack(costs, [list(losses.values()) for losses in damages.values()], problem.budget, units=units)
    return {unit: list(losses)[option] for (unit, losses), option in zip(damages.items(), options, strict=True)}
