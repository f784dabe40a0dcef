"""The check for NaN and Inf before JSON is written, which cannot hold them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from slimrank.errors import SlimrankError


def require_finite(value: Any, what: str) -> None:
    """Raise a SlimrankError that names the first NaN or Inf in the JSON value `value`."""
    for place, number in _numbers(value, ""):
        if not math.isfinite(number):
            raise SlimrankError(
                f"{what} has {number} at {place.lstrip('.')}: what was measured there is not a number; "
                "check the weights, or compute with --dtype float32."
            )


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{place}.{index}")
