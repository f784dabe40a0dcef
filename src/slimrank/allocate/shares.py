"""Arithmetic of shares: scores brought to a scale, and scaled until they spend exactly what there is."""

import torch
from torch import Tensor


def min_max(scores: Tensor) -> Tensor:
    """(x - min) / (max - min) in [0, 1]; one half each where all are equal."""
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else torch.full_like(scores, 0.5)


def scaled_to(weights: Tensor, sizes: Tensor, mean: float, low: float = 0.0, high: float = 1.0) -> Tensor:
    """c `weights` clipped to [low, high], with the factor c for which their mean over `sizes` is `mean`.

    What a clip takes from some or gives to them is thus spread over the others in proportion. Where `mean` is outside
    [low, high] everyone gets `mean`.
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
