from dataclasses import replace

import pytest
import torch

from slimrank.calibrate import InputMoments
from slimrank.errors import SlimrankError
from slimrank.metric import Site
from slimrank.metric.channels import CANDIDATES, Channels, channel_weights, truncation_loss, weighted_gram
from slimrank.metric.grams import Grams
from slimrank.spectrum import decompose


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments(x):
    return InputMoments(x @ x.T, x.abs().sum(1), x.shape[1])


def site(m=12, n=20, tokens=200):
    x, held_out = random(n, tokens, seed=1) * torch.linspace(1, 3, n)[:, None], random(n, 60, seed=2)
    return Site("q", random(m, n), moments(x), moments(held_out), keep=0.5)


def test_the_score_is_the_papers_quadratic_form_and_the_top_share_is_protected():
    gram = site().inputs.gram
    alpha = torch.stack([(gram[j] @ gram[j]).sqrt() for j in range(20)])  # sqrt(x_j^T X X^T x_j) = |H[:, j]|_2
    weights = channel_weights(gram, 0.15, 7.0)
    assert set(alpha.argsort(descending=True)[:3].tolist()) == set((weights == 7).nonzero().flatten().tolist())
    assert weights.sum() == 3 * 7 + 17
    assert (channel_weights(gram, 0.001, 7.0) == 7).sum() == 1


def test_paper_is_the_svd_of_the_weight_against_scaled_activations():
    here = site()
    w = channel_weights(here.inputs.gram, 0.1, 30**0.5)
    cholesky = torch.linalg.cholesky(here.inputs.gram)
    values = torch.linalg.svdvals(here.weight @ w.diag() @ cholesky)
    grams = Channels(share=0.1).grams(here)
    torch.testing.assert_close(decompose(here.weight, grams).values, values, rtol=1e-9, atol=1e-9)


def test_released_is_the_root_of_h_w2_h():
    gram = site().inputs.gram
    w = channel_weights(gram, 0.1, 30.0)
    found = weighted_gram(gram, w, "released")
    torch.testing.assert_close(found @ found, gram @ w.square().diag() @ gram, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(found, found.T)
    u, values, _ = torch.linalg.svd(gram @ w.diag())  # the code's own S = U Sigma^(1/2)
    s = u @ values.sqrt().diag()
    torch.testing.assert_close(found, s @ s.T, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(Channels(variant="released", share=0.1).grams(site()).right, found)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_gain_of_one_is_plain_whitening(variant):
    here = site()
    found = Channels(variant=variant, gain=1.0).grams(here).right
    torch.testing.assert_close(found, here.inputs.gram, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (15, 15)])
def test_truncation_loss_is_that_of_the_optimum(shape):
    weight, gram, held_out = random(*shape), moments(random(shape[1], 90, seed=3)).gram, random(shape[1], 40, seed=4)
    left, right = decompose(weight, Grams(right=gram)).cut(5)
    expected = ((weight - left @ right) @ held_out).square().sum().item()
    assert truncation_loss(weight, gram, 5, held_out @ held_out.T) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_auto_takes_the_gain_that_loses_least_on_held_out_windows_and_remembers_it(variant):
    here = site()
    rank = int(0.5 * 12 * 20 / 32)
    losses = {}
    for gain in CANDIDATES:
        left, right = decompose(here.weight, Channels(variant=variant, gain=gain).grams(here)).cut(rank)
        error = here.weight - left @ right
        losses[gain] = (error @ here.held_out.gram * error).sum().item()
    auto = Channels(variant=variant, gain="auto").grams(here).right
    best = min(losses, key=losses.get)
    torch.testing.assert_close(auto, Channels(variant=variant, gain=best).grams(here).right)
    assert here.choices == {"q": best}


def test_held_out_errors_are_weighted_by_what_calibration_protected():
    here = site()
    weights = channel_weights(here.inputs.gram, 0.1, 5.0)
    swapped = replace(here, held_out=moments(random(20, 60, seed=2) * torch.linspace(9, 1, 20)[:, None]))
    expected = weights.diag() @ swapped.held_out.gram @ weights.diag()
    torch.testing.assert_close(Channels(share=0.1, gain=5.0).held_out_grams(swapped).right, expected)
    assert Channels().held_out_grams(replace(here, held_out=None)) is None


def test_auto_without_held_out_tokens_says_what_to_do():
    with pytest.raises(SlimrankError, match=r"No held-out token reached q: give metric\.gain"):
        Channels(gain="auto").grams(replace(site(), held_out=None))
