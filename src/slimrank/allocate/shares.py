"""Arithmetic of shares: min-max normalisation, and scaling to a given weighted mean."""

import torch
from torch import Tensor


def min_max(scores: Tensor) -> Tensor:
    """(x - min) / (max - min) in [0, 1]; one half each where all are equal."""
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else torch.full_like(scores, 0.5)


def scaled_to(weights: Tensor, sizes: Tensor, mean: float, low: float = 0.0, high: float = 1.0) -> Tensor:
    """clip(c weights, low, high) with the factor c for which its mean, weighted by `sizes`, is `mean`; all are (k,).

    All are `mean` where that is outside (low, high).
    """
    if not low < mean < high:
        return torch.full_like(weights, mean)
    weights = weights.clamp_min(1e-12 * weights.max())
    knots = torch.cat([low / weights, high / weights]).sort().values  # between them the mean is linear in c
    means = (knots[:, None] * weights).clamp(low, high) @ sizes / sizes.sum()
    above = min(max(1, int(torch.searchsorted(means, mean))), len(knots) - 1)
    share = (mean - means[above - 1]) / (means[above] - means[above - 1])
    factor = knots[above - 1] + share * (knots[above] - knots[above - 1])
    return (factor * weights).clamp(low, high)
