import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import problem, session

from slimrank.allocate import Uniform
from slimrank.allocate.budget import used
from slimrank.allocate.dipsvd import BlockImportance, block_shares, effective_rank, importance, sensitivity


@pytest.fixture(scope="module")
def made(tiny_llama):
    return session(tiny_llama(num_hidden_layers=4), labels="text")


def test_sensitivities_are_those_of_autograd_through_the_whole_model(made):
    ids, model = made.windows.calibration, made.decoder.model
    weights = {name: module.weight for name, module in made.dense.items()}
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    squares = dict.fromkeys(weights, 0.0)
    for window in ids.split(1):
        logits = model(window).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum")
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            sums[name] += gradient
            squares[name] += gradient.square().sum().item()
    for name, weight in weights.items():
        outputs, norm = made.moments.outputs[name], weight.norm().item()
        assert sensitivity(outputs, weight) == pytest.approx(sums[name].norm().item() / norm, rel=1e-3)
        assert sensitivity(outputs, weight, "fisher") == pytest.approx(squares[name] ** 0.5 / norm, rel=1e-3)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.95, 1.0])
def test_effective_rank_holds_the_share_of_the_singular_values(energy):
    x = torch.randn(10, 40, dtype=torch.float64) * torch.logspace(0, -2, 10, dtype=torch.float64)[:, None]
    values = torch.linalg.svdvals(x)
    expected = next(k for k in range(1, 11) if values[:k].sum() >= energy * values.sum() - 1e-9)
    assert effective_rank(x @ x.T, energy) == expected


def test_importance_by_hand():
    s, r = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([30.0, 10.0, 20.0]).double()
    paper = [0.0, 0.0, 1**0.3 * 0.5**0.7]
    assert importance(s, r, 0.3, "paper").tolist() == pytest.approx(paper)
    released = [0.0, ((0.5 - 0.25) / 0.75) ** 0.3, 0.0]
    assert importance(s, r, 0.3, "released").tolist() == pytest.approx(released)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0.31, 0.97))
@settings(max_examples=50, deadline=None)
def test_shares_meet_the_budget_inside_the_clip(scores, keep):
    sizes = torch.arange(1.0, len(scores) + 1).double()
    shares = block_shares(torch.tensor(scores).double(), sizes, keep, 0.2, (0.3, 0.98))
    assert ((shares * sizes).sum() / sizes.sum()).item() == pytest.approx(keep, rel=1e-9)
    assert shares.min() >= 0.3 - 1e-12 and shares.max() <= 0.98 + 1e-12


def test_without_clipping_the_shares_span_the_band():
    shares = block_shares(torch.tensor([0.0, 0.5, 1.0]).double(), torch.ones(3).double(), 0.6, 0.2, (0.3, 0.98))
    assert shares.tolist() == pytest.approx([0.4, 0.6, 0.8])


@pytest.mark.parametrize("direction", ["paper", "released"])
def test_a_block_has_one_share_and_the_budget_holds(made, direction):
    for keep in (0.2, 0.45, 0.6, 0.8, 0.99):
        task = problem(made, keep)
        allocation = BlockImportance(direction=direction).allocate(task)
        assert used(task, allocation.ranks) <= task.budget
        assert any("allocate.clip" in note for note in allocation.notes) == (keep in (0.2, 0.99))
        for block in made.linears:
            same = {(tuple(m.weight.shape), allocation.ranks[name]) for name, m in block.items()}
            assert len(same) == len({shape for shape, _ in same})


def test_equal_scores_are_uniform_and_noted(made):
    task = problem(made)
    allocation = BlockImportance(beta=0.0, energy=0.0).allocate(task)  # every effective rank is 1
    assert allocation.ranks == Uniform().allocate(task).ranks
    assert "same for every block" in allocation.notes[0]
