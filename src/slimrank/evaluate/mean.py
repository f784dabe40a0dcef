"""A mean with its standard error."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple


class Mean(NamedTuple):
    """stderr: None where it is not known."""

    value: float
    stderr: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of independent values: their standard deviation, with one degree of freedom less, by the root of how many."""
        if len(values) < 2:
            return cls(values[0] if values else math.nan)
        return cls(fmean(values), stdev(values) / math.sqrt(len(values)))

    def told(self, digits: int, sign: str = "") -> str:
        """For a table: `0.0920 ± 0.0041`."""
        spec = f"z.{digits}f"
        return f"{self.value:{sign}{spec}}" + ("" if self.stderr is None else f" ± {self.stderr:{spec}}")
