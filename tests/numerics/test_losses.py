import pytest
import torch
from torch.nn.functional import kl_div

from slimrank.numerics.losses import costs, divergence, divergences, next_token_losses, scaled_divergences


def test_next_token_losses_are_those_of_the_definition():
    logits, ids = torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    found = next_token_losses(logits, ids)
    for window, row in enumerate(ids):
        for place in range(6):
            expected = -logits[window, place].double().softmax(0)[row[place + 1]].log()
            assert found[window, place].item() == pytest.approx(expected.item(), rel=1e-5)
    assert not found[:, -1].any()


def test_divergence_is_the_mean_kl():
    p, q = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    ).mean()
    torch.testing.assert_close(divergence(q, p), expected)


def test_divergences_are_each_windows_over_the_positions_that_predict_in_it():
    own, first = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    for found, q, p in zip(divergences(own, first), own.double(), first.double(), strict=True):
        expected = kl_div(q[:-1].log_softmax(-1), p[:-1].log_softmax(-1), reduction="batchmean", log_target=True)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not divergences(own, own).any()


def test_scaled_divergences_are_those_of_the_scaled_logits():
    teacher, student, factors = 3 * torch.randn(2, 5, 13), 2 * torch.randn(2, 5, 13), (0.3, 0.8, 1.0)
    expected = [divergence(factor * student.double(), teacher.double()).item() * 10 for factor in factors]
    assert scaled_divergences(student, teacher, factors).tolist() == pytest.approx(expected, rel=1e-5)
    assert scaled_divergences(teacher, teacher, [1.0]).item() == pytest.approx(0, abs=1e-5)


def test_costs_are_the_divergence_and_both_likelihoods():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    labels = torch.randint(0, 7, (2, 5), generator=generator)
    labels[:, -1] = -100
    log_p, log_q = (one.double().log_softmax(-1) for one in (teacher, student))
    expected = [(log_p.exp() * (log_p - log_q)).sum()]
    for log in (log_p, log_q):
        expected.append(-log[:, :-1].gather(-1, labels[:, :-1, None]).sum())
    assert costs(student, teacher, labels) == pytest.approx([one.item() for one in expected], rel=1e-5)
