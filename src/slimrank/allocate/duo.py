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

Option = tuple[int | None, ...]
Group = tuple[Unit, ...]
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass
class Scan:
    """The measured KL of a linear, or of several that get one share, by option.

    ranks: the options, of each linear a rank, ascending, dense (None) last; base: that of the base model; measure:
    gives the KL of an option; known: KL by the option's index.
    """

    ranks: list[Option]
    base: Option
    measure: Callable[[Option], float]
    known: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Measure the lowest rank, dense, and the base rank (whose measurement is cached)."""
        for option in {0, self.ranks.index(self.base), len(self.ranks) - 1}:
            self.known[option] = self.measure(self.ranks[option])

    def least(self) -> dict[Option, float]:
        """A lower bound of the KL at every option: measured, or the lower of the nearest measured neighbours'."""
        return {ranks: min(self.known[end] for end in self._ends(option)) for option, ranks in enumerate(self.ranks)}

    def measured(self) -> dict[Option, float]:
        """The KL of the options that were measured."""
        return {self.ranks[option]: loss for option, loss in sorted(self.known.items())}

    def halve(self, ranks: Option) -> None:
        """Measure halfway between the measured neighbours of an option."""
        low, high = self._ends(self.ranks.index(ranks))
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
        damage = Damage(problem.spectra, same_share(problem), windows=self.windows, pieces=problem.run.pieces)
        scans = {group: self._scan(problem, damage, group) for group in measured_together(problem)}
        for group in problem.run.track(list(scans), "measuring", len(scans)):
            scans[group].start()
        ranks = settle(problem, scans, self.units, self.tolerance * damage.kl({}))
        models = 2 + sum(len(scan.ranks) for scan in scans.values())  # plus the dense and the base model
        return Allocation(ranks, (damage.account(models),))

    def _scan(self, problem: Problem, damage: Damage, group: Group) -> Scan:
        base = tuple(damage.base[unit] for unit in group)
        options = {base, *(tuple(rank_at(problem, unit, share) for unit in group) for share in self.grid)}
        order = sorted(options, key=lambda ranks: [(rank is None, rank) for rank in ranks])
        return Scan(order, base, lambda ranks: damage.kl(dict(zip(group, ranks, strict=True))))


def measured_together(problem: Problem) -> list[Group]:
    """The linears, each alone, but all experts' of one type in a block as one: a measurement runs the model."""
    groups: dict[object, list[Unit]] = {}
    for unit in problem.curves:
        alike = (unit.block, unit.type) if unit.mixture else unit
        groups.setdefault(alike, []).append(unit)
    return [tuple(units) for units in groups.values()]


def settle(problem: Problem, scans: dict[Group, Scan], units: int, tolerance: float) -> Ranks:
    """The best assignment of measured options, within `tolerance` (nats) of the best of all options.

    Each round solves the knapsack with lower bounds for unmeasured options and measures in the gaps that it chose.
    """
    while True:
        least = {group: scan.least() for group, scan in scans.items()}
        measured = {group: scan.measured() for group, scan in scans.items()}
        bound, best = choose(problem, least, units), choose(problem, measured, units)
        open_gaps = [group for group, ranks in bound.items() if ranks not in measured[group]]
        gap = sum(measured[group][best[group]] - least[group][bound[group]] for group in scans)
        if not open_gaps or gap <= tolerance:
            return {unit: rank for group, ranks in best.items() for unit, rank in zip(group, ranks, strict=True)}
        for group in problem.run.track(open_gaps, "measuring", len(open_gaps)):
            scans[group].halve(bound[group])


def choose(problem: Problem, damages: dict[Group, dict[Option, float]], units: int) -> dict[Group, Option]:
    """One of the options of each group, such that the summed KL is least within the budget."""
    costs = [
        [sum(problem.cost(unit, rank) for unit, rank in zip(group, ranks, strict=True)) for ranks in options]
        for group, options in damages.items()
    ]
    options = knapsack(costs, [list(losses.values()) for losses in damages.values()], problem.budget, units=units)
    return {group: list(losses)[option] for (group, losses), option in zip(damages.items(), options, strict=True)}
