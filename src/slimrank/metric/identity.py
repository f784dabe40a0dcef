"""Plain SVD: every error counts the same."""

from typing import Literal

from slimrank.metric.base import Metric


class Identity(Metric):
    """L = I, R = I."""

    name: Literal["identity"] = "identity"
