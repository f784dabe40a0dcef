"""SVD-LLM (arXiv 2403.07378): the error of the output, |W X - W' X|_F."""

from typing import Literal

from slimrank.metric.base import Metric, Site
from slimrank.numerics.grams import Grams


class Whitened(Metric):
    """L = I, R R^T = H = sum x x^T."""

    name: Literal["whitened"] = "whitened"

    def grams(self, site: Site) -> Grams:
        """The input Gram on the right."""
        return Grams(right=site.inputs.gram)
