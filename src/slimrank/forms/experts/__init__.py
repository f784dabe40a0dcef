"""Mixtures of experts: fused ones, the same shown as linears, and stacks of compressed ones."""

from slimrank.forms.experts.fused import Layout, layout_of
from slimrank.forms.experts.layer import Experts, fold
from slimrank.forms.experts.stack import Stack
from slimrank.forms.experts.unfolded import Unfolded, place_of, unfold, unfolded, watching

__all__ = [
    "Experts",
    "Layout",
    "Stack",
    "Unfolded",
    "fold",
    "layout_of",
    "place_of",
    "unfold",
    "unfolded",
    "watching",
]
