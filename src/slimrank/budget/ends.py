"""What embedding and head of few bits are expected to lose, and the choice of their width."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from slimrank.allocate import Problem
from slimrank.allocate.candidates import POINTS
from slimrank.calibrate.ends import EndMoments
from slimrank.errors import UsageError
from slimrank.forms.linear import weight_of
from slimrank.model.compressible import Compressible
from slimrank.refine.ends import end_grid, nearest


class Outcome(Protocol):
    """A budget spent: the loss of all, and what other budgets would lose, by what they are."""

    @property
    def loss(self) -> float:
        """In nats a token."""

    @property
    def points(self) -> Sequence[tuple[Any, float]]:
        """Budgets, ascending, and the loss of each."""


S = TypeVar("S", bound=Outcome)


def best_of_widths(
    problem: Problem, widths: Sequence[int], spend: Callable[[dict[str, int], float], S]
) -> tuple[S, list[tuple[Any, float]]]:
    """What loses least of the widths that embedding and head may have, and what other budgets would lose.

    spend(ends, loss): the outcome with embedding and head in these bits, by name, which lose so much. Where calibration
    has not seen what an error of these costs, they get the widest below 16 bits.

    Raises:
        UsageError: that of the fewest bits, if all raise one.
    """
    model, moments = problem.spectra.model, problem.spectra.evidence.ends
    widths = sorted(widths)
    if moments is None:
        widths = [max((width for width in widths if width < 16), default=16)]
    found, failed = list[S](), list[UsageError]()
    for width in widths:
        ends = {} if width == 16 else dict.fromkeys(model.ends, width)
        loss = 0.0 if moments is None else end_loss(model, moments, width)
        try:
            found.append(spend(ends, loss))
        except UsageError as error:
            failed.append(error)
    if not found:
        raise failed[0]
    points = sorted(point for one in found for point in one.points)
    lowest = [point for place, point in enumerate(points) if all(point[1] < before[1] for before in points[:place])]
    return min(found, key=lambda one: one.loss), lowest[:: max(1, len(lowest) // POINTS)]


def head_bits(model: Compressible, ends: Mapping[str, int]) -> int:
    """The bits of the matrix that gives the logits, where embedding and head have these by name; 16 for floats."""
    table = model.decoder.model.get_input_embeddings()
    head = next((name for name, end in model.ends.items() if end is not table), next(iter(model.ends), ""))
    return ends.get(head, 16)


@torch.no_grad()
def end_loss(model: Compressible, moments: EndMoments, bits: int) -> float:
    """The expected loss, in nats a token, of embedding and head rounded to so many bits; 16 leaves them as they are."""
    if bits == 16:
        return 0.0
    table, tied, total = model.decoder.model.get_input_embeddings(), len(model.ends) < 2, 0.0
    with model.decoder.weights.hold(None):
        for end in model.ends.values():
            weight: Tensor = end.weight if end is table else weight_of(end)  # type: ignore[assignment]
            squares = (nearest(weight, end_grid(bits)).weight - weight.double()).square_()
            total += moments.price(squares, entry=end is table, head=tied or end is not table)
    return total
