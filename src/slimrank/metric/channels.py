"""DipSVD's local protection (arXiv 2506.20353): whitening in which the strongest input channels count more."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.metric.base import Metric, Site
from slimrank.metric.grams import Grams, square_root, squared_error, times

Variant = Literal["paper", "released"]
GAINS: dict[Variant, float] = {"paper": 30**0.5, "released": 30.0}
CANDIDATES = (1.0, 1.5, 2.0, 3.0, 30**0.5, 30.0)


class Channels(Metric):
    """L = I, R R^T = the channel-weighted input Gram.

    share: the share of channels to protect, those of the largest |H[:, j]|_2. gain: their weight, where the others'
    is 1; the variant's own by default, and `auto` picks for each linear the one of CANDIDATES whose truncation loses
    least on the held-out windows. variant: see weighted_gram.
    """

    name: Literal["channels"] = "channels"

    variant: Variant = "paper"
    share: Annotated[float, Field(gt=0, le=1)] = 0.03
    gain: Literal["auto"] | Annotated[float, Field(gt=0)] | None = None

    @property
    def of_keep(self) -> bool:
        """The best gain is that of a rank."""
        return self.gain == "auto"

    def grams(self, site: Site) -> Grams:
        """The weighted Gram on the right."""
        return Grams(right=self._weighted(site, site.inputs.gram))

    def held_out_grams(self, site: Site) -> Grams | None:
        """The held-out Gram under the weights that the calibration windows chose."""
        return None if site.held_out is None else Grams(right=self._weighted(site, site.held_out.gram))

    def _weighted(self, site: Site, gram: Tensor) -> Tensor:
        weights = channel_weights(site.inputs.gram, self.share, self._gain(site))
        return weighted_gram(gram, weights, self.variant)

    def _gain(self, site: Site) -> float:
        if self.gain != "auto":
            return self.gain or GAINS[self.variant]
        if site.name not in site.choices:
            site.choices[site.name] = min(CANDIDATES, key=lambda gain: self._loss(site, gain))
        return site.choices[site.name]

    def _loss(self, site: Site, gain: float) -> float:
        rows, columns = site.weight.shape
        rank = max(1, int(site.keep * rows * columns / (rows + columns)))
        gram = weighted_gram(site.inputs.gram, channel_weights(site.inputs.gram, self.share, gain), self.variant)
        if site.held_out is None:
            raise SlimrankError(f"No held-out token reached {site.name}: give metric.gain as a number.")
        return truncation_loss(site.weight.double(), gram, rank, site.held_out.gram)


def channel_weights(gram: Tensor, share: float, gain: float) -> Tensor:
    """w (n,): `gain` for the round(share n) channels, at least one, of the largest |H[:, j]|_2, 1 for the others."""
    weights = torch.ones(len(gram)).to(gram)
    weights[gram.norm(dim=0).topk(max(1, round(share * len(gram)))).indices] = gain
    return weights


def weighted_gram(gram: Tensor, weights: Tensor, variant: Variant) -> Tensor:
    """R R^T (n, n) from H (n, n) and the channels' weights w (n,).

    paper: D H D with D = diag(w). released: the authors' code scales the columns of H and takes R = U Sigma^(1/2) of
    the SVD of H diag(w), so that R R^T = (H diag(w^2) H)^(1/2).
    """
    if variant == "paper":
        return weights[:, None] * gram * weights
    u, values, _ = torch.linalg.svd(gram * weights)
    return (u * values) @ u.T


def truncation_loss(weight: Tensor, gram: Tensor, rank: int, held_out: Tensor) -> float:
    """|(W - W') X|_F^2 over held-out tokens X, with W' of that rank the best under `gram`, and `held_out` X X^T."""
    root, _ = square_root(gram)
    whitened = times(root, weight.T).T
    if weight.shape[0] <= weight.shape[1]:
        basis = torch.linalg.eigh(whitened @ whitened.T).eigenvectors[:, -rank:]
    else:
        right = torch.linalg.eigh(whitened.T @ whitened).eigenvectors[:, -rank:]
        basis = torch.linalg.qr(whitened @ right).Q
    return squared_error(weight - basis @ (basis.T @ weight), Grams(right=held_out))
