"""ASVD's search (arXiv 2312.05821): one perplexity threshold, met by every linear when it alone is truncated."""

from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.budget import rank_at, used, within_budget
from slimrank.allocate.measure import Damage, holds
from slimrank.calibrate.needs import Holds, Work
from slimrank.model.units import Unit
from slimrank.texts.windows import Windows

Share = Annotated[float, Field(gt=0, lt=1)]


class PerplexityScan(Allocator):
    """Each linear gets the least share at which the model, this linear alone truncated, stays within a threshold.

    The threshold is the lowest perplexity that meets the budget, by binary search over those measured on `windows`
    calibration windows. grid: the shares to measure, by default 0.4 to 0.9 as in the paper and, for a keep below 0.6,
    from keep - 0.2 (at least 0.1).
    """

    name: Literal["perplexity_scan"] = "perplexity_scan"
    windows: int = Field(32, ge=1)
    grid: Annotated[tuple[Share, ...], Len(1)] | None = None

    @property
    def measures(self) -> bool:
        """True: it measures perplexities."""
        return True

    def work(self, windows: Windows, linears: int) -> Work:
        """Every linear at each share of the paper's grid, from its block on, which is half of the blocks on average."""
        models = linears * len(self.grid or default_grid(0.6))
        return Work(models * windows.calibration[: self.windows].numel(), blocks=0.5, head=1)

    def holds(self, windows: Windows) -> Holds:
        """The states before every block."""
        return holds(windows.calibration[: self.windows], divergence=False)

    def allocate(self, problem: Problem) -> Allocation:
        """The ranks at the lowest threshold within the budget, with a note on what the measurements took."""
        grid = sorted(self.grid or default_grid(problem.keep))
        damage = Damage(problem.spectra, windows=self.windows, pieces=problem.run.pieces)
        scans: dict[Unit, dict[int | None, float]] = {}
        for unit in problem.run.track(list(problem.curves), "scanning", len(problem.curves)):
            ranks = dict.fromkeys(rank_at(problem, unit, share) for share in grid)
            scans[unit] = {rank: damage.nats({unit: rank}) for rank in ranks} | {None: damage.nats({})}
        models = 1 + sum(len(losses) - 1 for losses in scans.values())
        return Allocation(common_threshold(problem, scans), (damage.account(models),))


def default_grid(keep: float) -> list[float]:
    """Tenths from min(0.4, keep - 0.2), at least 0.1, to 0.9."""
    lowest = max(1, min(4, int(10 * keep + 1e-9) - 2))
    return [tenth / 10 for tenth in range(lowest, 10)]


def common_threshold(problem: Problem, scans: dict[Unit, dict[int | None, float]]) -> Ranks:
    """The ranks at the lowest threshold within the budget.

    scans: of each linear its ranks, ascending, dense (None) last, with the model's loss where it alone is truncated.
    Where the lowest measured ranks are still over the budget they are lowered further.

    Raises:
        UsageError: if rank 1 everywhere is over the budget.
    """
    thresholds = sorted({loss for losses in scans.values() for loss in losses.values()})

    def ranks_at(threshold: float) -> Ranks:
        return {
            unit: next((rank for rank, loss in losses.items() if loss <= threshold), None)
            for unit, losses in scans.items()
        }

    low, high = 0, len(thresholds) - 1
    best = {unit: next(iter(losses)) for unit, losses in scans.items()}
    while low <= high:
        middle = (low + high) // 2
        ranks = ranks_at(thresholds[middle])
        if used(problem, ranks) <= problem.budget:
            best, high = ranks, middle - 1
        else:
            low = middle + 1
    return within_budget(problem, best)
