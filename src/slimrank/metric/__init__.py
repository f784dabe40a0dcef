"""Metrics: what an error costs. A new one is a file here and a line in METRICS."""

from slimrank.metric.base import Metric, Site
from slimrank.metric.grams import Grams
from slimrank.metric.identity import Identity
from slimrank.metric.two_sided import TwoSided
from slimrank.metric.whitened import Whitened

METRICS: dict[str, type[Metric]] = {
    "identity": Identity,
    "whitened": Whitened,
    "two_sided": TwoSided,
}

__all__ = ["METRICS", "Grams", "Metric", "Site"]
