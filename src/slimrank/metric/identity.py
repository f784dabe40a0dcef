"""Plain SVD: |W - W'|_F, which needs no calibration."""

from typing import Literal

from slimrank.metric.base import Metric


class Identity(Metric):
    """L = I, R = I."""

    name: Literal["identity"] = "identity"
