"""Factorizers turn linears into compressed layers. A new one is a file here and a line in FACTORIZERS."""

from slimrank.factorize.base import Factorizer, Target
from slimrank.factorize.columns import ColumnsFactorizer
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.factorize.pivoted import PivotedFactorizer

FACTORIZERS: dict[str, type[Factorizer]] = {
    "low_rank": LowRankFactorizer,
    "columns": ColumnsFactorizer,
    "pivoted": PivotedFactorizer,
}

__all__ = ["FACTORIZERS", "Factorizer", "Target"]
