"""Metrics weigh the error of a weight. A new one is a file here and a line in METRICS."""

from slimrank.metric.asvd import MeanAbs
from slimrank.metric.base import Metric
from slimrank.metric.channels import Channels
from slimrank.metric.fwsvd import FisherRows
from slimrank.metric.identity import Identity
from slimrank.metric.two_sided import TwoSided
from slimrank.metric.whitened import Whitened

METRICS: dict[str, type[Metric]] = {
    "identity": Identity,
    "whitened": Whitened,
    "fisher_rows": FisherRows,
    "mean_abs": MeanAbs,
    "channels": Channels,
    "two_sided": TwoSided,
}

__all__ = ["METRICS", "Metric"]
