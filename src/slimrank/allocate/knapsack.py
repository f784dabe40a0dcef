"""The multiple-choice knapsack: one option of every group, with the least summed loss within a budget."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slimrank.errors import UsageError


def knapsack(costs: Sequence[ArrayLike], losses: Sequence[ArrayLike], budget: int, *, units: int = 10_000) -> list[int]:
    """The option of each group that minimises the summed loss, with the summed cost at most `budget`.

    costs[g] (whole numbers >= 0) and losses[g] hold group g's options. Solved by dynamic programming over `units`
    equal parts of the budget, every cost rounded up to whole parts; exact where units >= budget. What rounding leaves
    unspent goes into the best single changes.

    Raises:
        UsageError: if even the cheapest options are over the budget.
    """
    prices = [np.asarray(group, dtype=np.int64) for group in costs]
    values = [np.asarray(group, dtype=np.float64) for group in losses]
    cheapest = sum(int(group.min()) for group in prices)
    if cheapest > budget:
        raise UsageError(f"The cheapest options need {cheapest} parameters and --keep leaves {budget}: raise --keep.")
    units = min(units, budget)
    parts = prices if units == budget else [-(-group * units // budget) for group in prices]
    chosen = _solve(parts, values, units)
    if chosen is None:
        chosen = [int(group.argmin()) for group in prices]
    return _spend(prices, values, budget, chosen)


def _solve(costs: list[NDArray], losses: list[NDArray], budget: int) -> list[int] | None:
    """The optimum by dynamic programming, None if the costs don't fit; best[b] is the least loss at cost <= b."""
    best = np.zeros(budget + 1)
    choices = []
    for cost, loss in zip(costs, losses, strict=True):
        table = np.full((len(cost), budget + 1), np.inf)
        for option, (price, value) in enumerate(zip(cost, loss, strict=True)):
            if price <= budget:
                table[option, price:] = best[: budget + 1 - price] + value
        choice = table.argmin(0)
        best = np.take_along_axis(table, choice[None], 0)[0]
        choices.append(choice.astype(np.int16))
    if np.isinf(best[budget]):
        return None
    chosen, left = [], budget
    for cost, choice in zip(reversed(costs), reversed(choices), strict=True):
        chosen.append(int(choice[left]))
        left -= int(cost[chosen[-1]])
    return chosen[::-1]


def _spend(costs: list[NDArray], losses: list[NDArray], budget: int, chosen: list[int]) -> list[int]:
    """Repeatedly change the option of the group that lowers the loss most within the budget."""
    chosen = list(chosen)
    left = budget - sum(int(cost[option]) for cost, option in zip(costs, chosen, strict=True))
    while True:
        gains = []
        for group, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
            now = chosen[group]
            fits = np.where(cost <= cost[now] + left, loss, np.inf)
            gains.append((loss[now] - fits.min(), -group, int(fits.argmin())))
        gain, group, option = max(gains, default=(0.0, 0, 0))
        if gain <= 0:
            return chosen
        left += int(costs[-group][chosen[-group]] - costs[-group][option])
        chosen[-group] = option
