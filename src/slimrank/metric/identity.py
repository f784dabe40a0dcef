"""Plain SVD: every error counts the same."""

from typing import Literal

from slimrank.metric.base import Metric, Site
from slimrank.numerics.grams import Grams


class Identity(Metric):
    """L = I, R = I."""

    name: Literal["identity"] = "identity"

    def grams(self, site: Site) -> Grams:
        """No weights."""
        return Grams()
