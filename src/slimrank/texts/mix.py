"""Several calibration texts: which share of the windows each one gives, and in which order they come."""

import math
import random
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from slimrank.errors import UsageError
from slimrank.texts.given import Source

SHARE = re.compile(r"(?P<spec>.*)\*(?P<share>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)", re.IGNORECASE | re.DOTALL)
CLOSE = 1e-6  # to 1, of shares that add up to it


def split_share(spec: Source) -> tuple[Source, float | None]:
    """The SPEC without its share, and the share: what follows the last `*`, where that is a number.

    A text whose own name ends so is meant by a share behind it: `odd*0.3*1`. What is in memory has no share.
    """
    if not isinstance(spec, str):
        return spec, None
    found = SHARE.fullmatch(spec)
    return (found["spec"], float(found["share"])) if found else (spec, None)


def with_share(spec: str, share: float) -> str:
    """The SPEC that `split_share` takes apart again."""
    return f"{spec}*{share!r}"


def mixed(specs: Sequence[Source]) -> list[tuple[Source, float]]:
    """The texts' SPECs and their shares of the windows, which add up to 1; those without one share what is left.

    Raises:
        UsageError: for invalid shares, or a text given twice.
    """
    texts = [split_share(spec) for spec in specs]
    given = [share for _, share in texts if share is not None]
    for spec, share in texts:
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"--calibration {spec}*{share:g}: the share must be above 0 and at most 1.")
        if sum(other is spec or (isinstance(spec, str) and other == spec) for other, _ in texts) > 1:
            spec = spec if isinstance(spec, str) else "text"
            raise UsageError(f"--calibration {spec} is given twice: give it once, with the sum of its shares.")
    total, others = math.fsum(given), len(texts) - len(given)
    if not others and abs(total - 1) > CLOSE:
        raise UsageError(f"The shares of --calibration add up to {total:g}: make them 1, or leave one of them out.")
    if others and total > 1 - CLOSE:
        raise UsageError(
            f"The shares of --calibration add up to {total:g} and leave nothing for the texts without one: lower some."
        )
    return [(spec, (1 - total) / others if share is None else share) for spec, share in texts]


def apportioned(count: int, shares: Sequence[float]) -> list[int]:
    """`count` in these shares, in whole numbers: rounded down, what is left to the largest remainders."""
    exact = [count * share for share in shares]
    whole = [math.floor(one) for one in exact]
    order = sorted(range(len(shares)), key=lambda index: whole[index] - exact[index])
    for index in order[: count - sum(whole)]:
        whole[index] += 1
    return whole


def interleaved(rows: Sequence[Tensor], seed: int) -> Tensor:
    """The texts' windows (count, window) as one tensor, in the order of `places`."""
    order = sorted(enumerate(places(list(map(len, rows)), seed)), key=lambda one: one[1])
    return torch.cat(list(rows))[[index for index, _ in order]]


def origins(counts: Sequence[int], seed: int) -> Tensor:
    """(sum of counts,) which text each window of `interleaved` is of."""
    return interleaved([torch.full((count,), index) for index, count in enumerate(counts)], seed)


def places(counts: Sequence[int], seed: int) -> list[float]:
    """Where each text's windows come, one text after the other, so that every beginning is mixed like the whole.

    Each text's windows keep their order; of n, the k-th comes at a random place of the k-th n-th of the whole. So one
    text stays as it is, and of the first m windows each of two texts has its share to less than one window.
    """
    rng = random.Random(f"{seed}/order")
    return [(k + rng.random()) / count for count in counts for k in range(count)]
