from dataclasses import replace

import pytest
import torch
from sessions import problem, session

from slimrank.allocate import Uniform
from slimrank.allocate.dipsvd import BlockImportance
from slimrank.calibrate import InputMoments
from slimrank.errors import SlimrankError
from slimrank.metric import Site
from slimrank.metric.channels import CANDIDATES, Channels, best_gain, channel_weights, truncation_losses, weighted_gram
from slimrank.numerics.grams import Grams, squared_error
from slimrank.spectrum.decomposition import decompose


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
def test_truncation_losses_are_those_of_the_optimum_at_every_rank(shape):
    weight, gram, held_out = random(*shape), moments(random(shape[1], 90, seed=3)).gram, random(shape[1], 40, seed=4)
    decomposition = decompose(weight, Grams(right=gram))
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
        decomposition = decompose(here.weight, Channels(variant=variant, gain=gain).grams(here))
        errors = [here.weight - left @ right for left, right in (decomposition.cut(rank) for rank in range(13))]
        losses[gain] = torch.stack([(error @ here.held_out.gram * error).sum() for error in errors])
    return losses


def with_protected_channels_louder(here, times):
    """Held-out tokens in which the channel that calibration protects is louder than there: amplifying it pays."""
    loud = (channel_weights(here.inputs.gram, 0.03, times) * torch.linspace(1, 3, 20))[:, None]
    return replace(here, held_out=moments(random(20, 600, seed=2) * loud))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_auto_takes_a_gain_that_surely_loses_less_and_remembers_it(variant):
    here = with_protected_channels_louder(site(), 20.0)
    losses = held_out_losses(here, variant)
    auto = Channels(variant=variant, gain="auto").grams(here).right
    best = min(CANDIDATES, key=lambda gain: losses[gain][3])
    assert here.choices == {"q": best}
    assert losses[best][3] < 0.99 * losses[1.0][3] and (losses[best][2:6] <= losses[1.0][2:6]).all()
    torch.testing.assert_close(auto, Channels(variant=variant, gain=best).grams(here).right)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_auto_is_no_gain_at_all_where_none_pays(variant):
    here = site()
    assert Channels(variant=variant, gain="auto").grams(here).right is here.inputs.gram
    assert here.choices == {"q": 1.0}


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
def test_auto_loses_no_more_than_none_in_any_linear_of_a_model(tiny_llama, variant):
    auto, none = (
        session(tiny_llama(), keep=0.6, metric=Channels(variant=variant, share=0.1, gain=gain))
        for gain in ("auto", 1.0)
    )
    made = session(tiny_llama(), keep=0.6, labels="text")
    for allocator in (Uniform(), BlockImportance(direction="paper", spread=0.15)):
        lost = {}
        for name, rank in allocator.allocate(problem(made)).ranks.items():
            lost[name] = []
            for each in (auto, none):
                left, right = each.decompositions[name].cut(rank)
                here = each.site(name)
                lost[name].append(squared_error(here.weight.double() - left @ right, Grams(right=here.held_out.gram)))
        assert all(ours <= theirs * (1 + 1e-9) for ours, theirs in lost.values())
        assert sum(ours for ours, _ in lost.values()) <= sum(theirs for _, theirs in lost.values()) * (1 + 1e-9)


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
