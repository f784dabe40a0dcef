"""DipSVD's local protection (arXiv 2506.20353): whitening with amplified input channels."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.calibrate.moments import InputMoments
from slimrank.errors import SlimrankError
from slimrank.metric.base import Metric
from slimrank.numerics.grams import square_root, times
from slimrank.numerics.threads import one_thread

Variant = Literal["paper", "released"]
GAINS: dict[Variant, float] = {"paper": 30**0.5, "released": 30.0}
CANDIDATES = (1.5, 2.0, 3.0, 30**0.5, 30.0)
WORTH = 0.01  # the share of the held-out loss that a gain must save; less is noise
AROUND = (0.5, 1.5)  # times the uniform rank: the range in which a gain may not lose more than gain 1


class Channels(Metric):
    """L = I, R R^T = the channel-weighted input Gram.

    share: the share of channels to amplify, those of the largest |H[:, j]|_2. gain: their weight (the others have 1),
    by default the variant's own; `auto` chooses it for each linear on the held-out windows, see best_gain. variant: see
    weighted_gram.
    """

    name: Literal["channels"] = "channels"

    variant: Variant = "released"
    share: Annotated[float, Field(gt=0, le=1)] = 0.03
    gain: Literal["auto"] | Annotated[float, Field(gt=0)] | None = None

    @property
    def depends_on_keep(self) -> bool:
        """True for gain `auto`, which is chosen at the rank for `keep`."""
        return self.gain == "auto"

    def right(self, inputs: InputMoments) -> Tensor:
        """The weighted Gram (n, n)."""
        return self.held_out_right(inputs, inputs)

    def held_out_right(self, inputs: InputMoments, held_out: InputMoments) -> Tensor:
        """The held-out Gram (n, n) with the channel weights of the calibration windows."""
        assert self.gain != "auto", "gain auto is replaced by `chosen`"
        return self._at(self.gain or GAINS[self.variant], inputs, held_out)

    def choose(self, weight: Tensor, inputs: InputMoments, held_out: InputMoments | None, keep: float) -> float | None:
        """The gain of one linear for `auto`, None otherwise."""
        if self.gain != "auto":
            return None
        if held_out is None:
            raise SlimrankError("No held-out token reached it: give metric.gain as a number")
        rows, columns = weight.shape
        weight, measured = weight.double(), held_out.gram()
        with one_thread(weight):
            losses = {
                gain: truncation_losses(weight, self._at(gain, inputs, inputs), measured) for gain in (1.0, *CANDIDATES)
            }
        return best_gain(losses, int(keep * rows * columns / (rows + columns)))

    def chosen(self, choice: float | None) -> "Channels":
        """The metric with the gain that was chosen."""
        return self if choice is None else self.model_copy(update={"gain": choice})

    def _at(self, gain: float, inputs: InputMoments, on: InputMoments) -> Tensor:
        if gain == 1:
            return on.gram()
        return weighted_gram(on.gram(), channel_weights(inputs.gram(), self.share, gain), self.variant)


def best_gain(losses: dict[float, Tensor], rank: int) -> float:
    """The gain of the least loss at `rank` among those that clearly improve on gain 1; 1 if none does.

    losses: by gain (1 included) the held-out loss at every rank (q + 1,). A gain must save WORTH of the loss at `rank`
    and lose no more at any rank of AROUND times it, since an allocator may change the rank.
    """
    low, high = (max(1, min(round(times * rank), len(losses[1.0]) - 2)) for times in AROUND)
    rank = min(max(rank, low), high)
    near, plain = slice(low, high + 1), losses[1.0]
    better = [
        gain
        for gain, loss in losses.items()
        if gain != 1 and loss[rank] < (1 - WORTH) * plain[rank] and (loss[near] <= plain[near]).all()
    ]
    return min(better, key=lambda gain: losses[gain][rank].item(), default=1.0)


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


def truncation_losses(weight: Tensor, gram: Tensor, held_out: Tensor) -> Tensor:
    """|(W - W'_r) X|_F^2 at every rank r = 0..q (q + 1,) over held-out tokens X, W'_r being optimal under `gram`.

    weight W (m, n) float64; held_out: X X^T (n, n). W'_r = U_r U_r^T W.
    """
    if weight.shape[0] <= weight.shape[1]:
        basis = torch.linalg.eigh(weight @ gram @ weight.T).eigenvectors.flip(1)
    else:
        root, _ = square_root(gram)
        whitened = times(root, weight.T).T
        basis = torch.linalg.qr(whitened @ torch.linalg.eigh(whitened.T @ whitened).eigenvectors.flip(1)).Q
    projected = basis.T @ weight
    saved = (projected * (projected @ held_out)).sum(1)
    whole = (weight * (weight @ held_out)).sum()
    return whole - torch.cat([saved.new_zeros(1), saved.cumsum(0)])
