from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from tiny_spectra import problem, spectra
from torch import Tensor

from slimrank.allocate import Uniform
from slimrank.allocate.dipsvd import BlockImportance
from slimrank.calibrate import InputMoments, Moments
from slimrank.errors import SlimrankError
from slimrank.metric.channels import CANDIDATES, Channels, best_gain, channel_weights, truncation_losses, weighted_gram
from slimrank.numerics.gram_sum import GramSum
from slimrank.numerics.grams import Grams, squared_error
from slimrank.spectrum.decomposition import decompose_weight


class Linear(NamedTuple):
    """A weight and what reached it."""

    weight: Tensor
    inputs: InputMoments
    held_out: InputMoments


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments(x):
    return InputMoments(GramSum.of(x @ x.T), x.abs().sum(1), tokens=x.shape[1])


def linear(m=12, n=20, tokens=200):
    x, held_out = random(n, tokens, seed=1) * torch.linspace(1, 3, n)[:, None], random(n, 60, seed=2)
    return Linear(random(m, n), moments(x), moments(held_out))


def choice(metric, here):
    return metric.choose(here.weight, here.inputs, here.held_out, 0.5)


def test_the_score_is_the_papers_quadratic_form_and_the_top_share_is_protected():
    gram = linear().inputs.gram()
    alpha = torch.stack([(gram[j] @ gram[j]).sqrt() for j in range(20)])  # sqrt(x_j^T X X^T x_j) = |H[:, j]|_2
    weights = channel_weights(gram, 0.15, 7.0)
    assert set(alpha.argsort(descending=True)[:3].tolist()) == set((weights == 7).nonzero().flatten().tolist())
    assert weights.sum() == 3 * 7 + 17
    assert (channel_weights(gram, 0.001, 7.0) == 7).sum() == 1


def test_paper_is_the_svd_of_the_weight_against_scaled_activations():
    here = linear()
    w = channel_weights(here.inputs.gram(), 0.1, 30**0.5)
    cholesky = torch.linalg.cholesky(here.inputs.gram())
    values = torch.linalg.svdvals(here.weight @ w.diag() @ cholesky)
    grams = Grams(right=Channels(variant="paper", share=0.1).right(here.inputs))
    torch.testing.assert_close(decompose_weight(here.weight, grams).values, values, rtol=1e-9, atol=1e-9)


def test_released_is_the_root_of_h_w2_h():
    gram = linear().inputs.gram()
    w = channel_weights(gram, 0.1, 30.0)
    found = weighted_gram(gram, w, "released")
    torch.testing.assert_close(found @ found, gram @ w.square().diag() @ gram, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(found, found.T)
    u, values, _ = torch.linalg.svd(gram @ w.diag())  # the code's own S = U Sigma^(1/2)
    s = u @ values.sqrt().diag()
    torch.testing.assert_close(found, s @ s.T, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(Channels(variant="released", share=0.1).right(linear().inputs), found)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_gain_of_one_is_plain_whitening(variant):
    here = linear()
    found = Channels(variant=variant, gain=1.0).right(here.inputs)
    torch.testing.assert_close(found, here.inputs.gram(), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (15, 15)])
def test_truncation_losses_are_those_of_the_optimum_at_every_rank(shape):
    weight, gram, held_out = random(*shape), moments(random(shape[1], 90, seed=3)).gram(), random(shape[1], 40, seed=4)
    decomposition = decompose_weight(weight, Grams(right=gram))
    found = truncation_losses(weight, gram, held_out @ held_out.T)
    assert len(found) == 13 if 12 in shape else 16
    for rank in (0, 1, 5, min(shape) - 1):
        left, right = decomposition.cut(rank)
        expected = ((weight - left @ right) @ held_out).square().sum().item()
        assert found[rank].item() == pytest.approx(expected, rel=1e-8)
    assert found[-1].item() == pytest.approx(0, abs=1e-8 * found[0].item())


def held_out_losses(here, variant):
    """By gain the held-out loss at every rank, from the cut decompositions themselves."""
    losses = {}
    for gain in (1.0, *CANDIDATES):
        decomposition = decompose_weight(
            here.weight, Grams(right=Channels(variant=variant, gain=gain).right(here.inputs))
        )
        errors = [here.weight - left @ right for left, right in (decomposition.cut(rank) for rank in range(13))]
        losses[gain] = torch.stack([(error @ here.held_out.gram() * error).sum() for error in errors])
    return losses


def with_protected_channels_louder(here, times):
    """Held-out tokens in which the channel that calibration protects is louder than there: amplifying it pays."""
    loud = (channel_weights(here.inputs.gram(), 0.03, times) * torch.linspace(1, 3, 20))[:, None]
    return here._replace(held_out=moments(random(20, 600, seed=2) * loud))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_auto_takes_a_gain_that_surely_loses_less(variant):
    here = with_protected_channels_louder(linear(), 20.0)
    losses, auto = held_out_losses(here, variant), Channels(variant=variant, gain="auto")
    best = min(CANDIDATES, key=lambda gain: losses[gain][3])
    assert choice(auto, here) == best and auto.depends_on_keep
    assert losses[best][3] < 0.99 * losses[1.0][3] and (losses[best][2:6] <= losses[1.0][2:6]).all()
    torch.testing.assert_close(
        auto.chosen(best).right(here.inputs), Channels(variant=variant, gain=best).right(here.inputs)
    )


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_auto_is_no_gain_at_all_where_none_pays(variant):
    here, auto = linear(), Channels(variant=variant, gain="auto")
    assert choice(auto, here) == 1.0
    assert auto.chosen(1.0).right(here.inputs).equal(here.inputs.gram())


def test_a_gain_that_is_given_is_not_chosen():
    fixed = Channels(gain=2.0)
    assert choice(fixed, linear()) is None and fixed.chosen(None) is fixed and not fixed.depends_on_keep


def test_ties_noise_and_what_loses_at_other_ranks_fall_back_to_no_gain():
    plain = torch.tensor([10.0, 8, 6, 4, 2, 1, 0])
    assert best_gain({1.0: plain, 3.0: plain.clone()}, 4) == 1
    assert best_gain({1.0: plain, 3.0: 0.995 * plain}, 4) == 1
    assert best_gain({1.0: plain, 1.5: 0.985 * plain, 3.0: 0.98 * plain}, 4) == 3
    near, far = torch.tensor([10.0, 8, 6.1, 3, 1, 0.5, 0]), torch.tensor([10.0, 8.1, 6, 3, 1, 0.5, 0])
    assert best_gain({1.0: plain, 3.0: near}, 4) == 1  # ranks 2 to 5 count
    assert best_gain({1.0: plain, 3.0: far}, 4) == 3
    assert best_gain({1.0: torch.tensor([1.0, 0]), 3.0: torch.tensor([1.0, 0])}, 0) == 1


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_auto_loses_no_more_than_none_in_any_linear_of_a_model_and_is_remembered(tiny_llama, variant):
    auto, none = (
        spectra(tiny_llama(), Channels(variant=variant, share=0.1, gain=gain), keep=0.6) for gain in ("auto", 1.0)
    )
    for unit, curve in auto.curves.items():
        assert curve.choice == auto.choice(unit, 0.6) in (1.0, *CANDIDATES)
    importance = BlockImportance(direction="paper", spread=0.15)
    made = problem(spectra(tiny_llama(), needs=importance.needs), 0.6)
    for allocator in (Uniform(), importance):
        lost = []
        for unit, rank in allocator.allocate(made).ranks.items():
            measured = Grams(right=auto.evidence.held_out_of(unit.leader).gram())
            cuts = (each.cut(unit, rank) for each in (auto, none))
            lost.append([squared_error(auto.weight(unit).double() - left @ right, measured) for left, right in cuts])
        assert all(ours <= theirs * (1 + 1e-9) for ours, theirs in lost)
        assert sum(ours for ours, _ in lost) <= sum(theirs for _, theirs in lost) * (1 + 1e-9)


def test_held_out_errors_are_weighted_by_what_calibration_protected():
    here = linear()
    weights = channel_weights(here.inputs.gram(), 0.1, 5.0)
    swapped = moments(random(20, 60, seed=2) * torch.linspace(9, 1, 20)[:, None])
    expected = weights.diag() @ swapped.gram() @ weights.diag()
    torch.testing.assert_close(
        Channels(variant="paper", share=0.1, gain=5.0).held_out_right(here.inputs, swapped), expected
    )


def test_without_held_out_tokens_nothing_is_measured_and_auto_says_what_to_do(tiny_llama):
    made = spectra(tiny_llama(), Channels())
    made, unit = replace(made, evidence=replace(made.evidence, held_out=Moments())), next(iter(made.curves))
    assert made.held_out_grams(unit) is None
    with pytest.raises(SlimrankError, match=r"At model\.layers\.0\.self_attn\.q_proj: No held-out.*give metric\.gain"):
        replace(made, metric=Channels(gain="auto")).choice(unit, 0.5)
