import re

import pytest
import torch
from sessions import problem, session
from torch import Tensor

from slimrank.allocate import measure
from slimrank.allocate.asvd import PerplexityScan, common_threshold, default_grid
from slimrank.allocate.budget import cost, fit_ranks, used
from slimrank.allocate.duo import MeasuredModules, Scan, choose, settle
from slimrank.allocate.measure import Damage
from slimrank.errors import UsageError
from slimrank.model.linear import weight_of
from slimrank.run.session import Session


@pytest.fixture(scope="module")
def made(tiny_llama) -> Session:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return session(tiny_llama(**sizes), keep=0.6)


def whole_model_logits(made: Session, ranks: dict, ids: Tensor) -> Tensor:
    """The whole model run with weights that are the multiplied-out cuts."""
    before = {name: weight_of(dense).detach().clone() for name, dense in made.dense.items()}
    with torch.no_grad():
        for name, rank in ranks.items():
            if rank is not None:
                decomposition = made.decompositions[name]
                weight_of(made.dense[name]).copy_(decomposition.left[:, :rank] @ decomposition.right[:rank])
        logits = made.decoder.model(input_ids=ids).logits.double()
        for name, weight in before.items():
            weight_of(made.dense[name]).copy_(weight)
    return logits


def test_is_the_whole_models_divergence_and_likelihood(made):
    base = fit_ranks(problem(made), dict.fromkeys(made.dense, 0.6))
    damage, ids = Damage(made, base, windows=5), made.windows.calibration[:5]
    names = list(made.dense)
    dense = whole_model_logits(made, {}, ids).log_softmax(-1)
    for changes in ({}, {names[0]: 2}, {names[-1]: None}, {names[9]: 1, names[12]: 5}, dict.fromkeys(names, 3)):
        model = whole_model_logits(made, base | changes, ids).log_softmax(-1)
        kl = (dense.exp() * (dense - model)).sum() / 5
        nats = -model[:, :-1].gather(2, ids[:, 1:, None]).mean()
        assert damage.kl(changes) == pytest.approx(kl.item(), rel=1e-5)
        assert damage.nats(changes) == pytest.approx(nats.item(), rel=1e-5)
    assert damage.kl(dict.fromkeys(names)) == pytest.approx(0, abs=1e-4)
    assert all(made.decoder.model.get_submodule(name) is dense for name, dense in made.dense.items())


def test_runs_only_the_blocks_from_the_change_on(made):
    names = list(made.dense)
    damage = Damage(made, windows=2)
    assert damage.passes == 3
    damage.kl({names[0]: 2})
    assert damage.passes == 3 + 3  # the base, which is the dense model, and the changed one
    damage.kl({names[7]: 2})
    damage.kl({names[14]: 2})
    assert damage.passes == 6 + 2 + 1
    damage.kl({names[14]: 2})
    damage.kl({names[3]: None})
    assert damage.passes == 9
    assert damage.account(5) == "Measured in 9 block passes of 2 windows; 5 models run whole: 15."


def test_without_prefixes_it_measures_the_same_and_holds_less(made, monkeypatch):
    damage = Damage(made, windows=5)
    monkeypatch.setattr(made.decompositions, "room", 0)  # as where there is no memory for them
    lean, names = Damage(made, windows=5, prefixes=False), list(made.dense)
    assert lean.passes == 0
    for ranks in ({names[0]: 2}, dict.fromkeys(names, 3), {names[-1]: 4}):
        assert lean.nats(ranks) == pytest.approx(damage.nats(ranks), rel=1e-6)
        assert lean.kl(ranks) == pytest.approx(damage.kl(ranks), rel=1e-5)
    assert lean.passes == 3 * (2 * 3 + 1)  # both kinds of measurement, and the dense model
    expected = damage.nats(dict.fromkeys(names, 2))
    monkeypatch.setattr(made, "decompositions", {})  # all factors are held
    assert lean.nats(dict.fromkeys(names, 2)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("numbers", [1, 3 * 32 * 320])
def test_the_head_may_see_a_batch_in_parts(made, monkeypatch, numbers):
    names = list(made.dense)
    whole = Damage(made, windows=8)
    monkeypatch.setattr(measure, "CPU_LOGITS", numbers)
    parts = Damage(made, windows=8)
    assert len(whole._parts) < len(parts._parts) == (8 if numbers == 1 else 3)
    for ranks in ({}, {names[0]: 2}, {names[-1]: 4}):
        assert parts.kl(ranks) == pytest.approx(whole.kl(ranks), rel=1e-6, abs=1e-5)
        assert parts.nats(ranks) == pytest.approx(whole.nats(ranks), rel=1e-6)


def test_more_windows_than_calibrated_are_refused(made):
    with pytest.raises(UsageError, match=r"allocate.windows 13 is more than the 12 calibration windows"):
        Damage(made, windows=13)


@pytest.mark.parametrize("keep", [0.4, 0.8])
def test_measured_modules_spends_the_budget_where_it_helps(made, keep):
    asked = problem(made, keep)
    allocation = MeasuredModules(windows=4, grid=(0.1, 0.3, 0.5, 0.7, 1.0)).allocate(asked)
    assert used(asked, allocation.ranks) <= asked.budget
    damage = Damage(made, windows=12)
    uniform = fit_ranks(asked, dict.fromkeys(made.dense, keep))
    assert damage.kl(allocation.ranks) < 1.05 * damage.kl(uniform)
    assert "block passes of 4 windows" in allocation.notes[0]


def test_measures_in_less_than_half_of_the_passes_of_whole_models(tiny_llama):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 6, "num_attention_heads": 2}
    deep = session(tiny_llama(**sizes), keep=0.5)
    (note,) = MeasuredModules(windows=1, grid=(0.1, 0.3, 0.5, 0.7, 1.0)).allocate(problem(deep)).notes
    passes, _, _, whole = map(int, re.findall(r"\d+", note))
    assert 2 * passes < whole


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("tolerance", [0.0, 5.0])
def test_settles_on_the_best_assignment_without_measuring_all(made, keep, tolerance):
    asked, generator = problem(made, keep), torch.Generator().manual_seed(int(10 * keep))
    full = {}
    for name in made.dense:
        ranks = [1, 2, 3, 4, 5, 6, 7, 8, 9, None]
        falls = torch.rand(len(ranks), generator=generator) * torch.logspace(2, -1, len(ranks))
        full[name] = dict(zip(ranks, falls.flip(0).cumsum(0).flip(0).tolist(), strict=True))
    scans = {name: Scan(list(losses), 5, losses.__getitem__) for name, losses in full.items()}
    for scan in scans.values():
        scan.start()
    found = settle(asked, scans, 50_000, tolerance)
    best = choose(asked, full, 50_000)
    assert used(asked, found) <= asked.budget
    value, least = (sum(full[name][ranks[name]] for name in full) for ranks in (found, best))
    assert least <= value <= least + tolerance + 1e-6
    assert sum(len(scan.known) for scan in scans.values()) < (0.85 if tolerance == 0 else 0.8) * 10 * len(full)


def test_equal_damages_reduce_to_uniform(made):
    asked = problem(made, 0.6)
    queries = [name for name in made.dense if made.dense[name].weight.shape == (16, 16)]
    only = {name: asked.spectrum.linears[name] for name in queries}
    same = type(asked)(0.75, type(asked.spectrum)(only), asked.form, made)
    damages = {name: {rank: 1.0 / rank for rank in range(1, 8)} for name in queries}
    assert choose(same, damages, 10_000) == dict.fromkeys(queries, 6)


def test_scan_takes_the_lowest_threshold_within_the_budget(made):
    for keep in (0.5, 0.8):
        asked = problem(made, keep)
        damage = Damage(made, windows=3)
        scans = {
            name: {rank: damage.nats({name: rank}) for rank in (2, 3, 5)} | {None: damage.nats({})}
            for name in made.dense
        }
        ranks = common_threshold(asked, scans)
        by_hand = {}
        for threshold in sorted((loss for losses in scans.values() for loss in losses.values()), reverse=True):
            tried = {n: min((r for r in (2, 3, 5) if v[r] <= threshold), default=None) for n, v in scans.items()}
            if sum(cost(asked, name, rank) for name, rank in tried.items()) > asked.budget:
                break
            by_hand = tried
        assert ranks == by_hand and used(asked, ranks) <= asked.budget


@pytest.mark.parametrize("keep", [0.2, 0.6])
def test_scan_meets_the_budget(made, keep):
    asked = problem(made, keep)
    allocation = PerplexityScan(windows=2).allocate(asked)
    assert used(asked, allocation.ranks) <= asked.budget


def test_the_papers_grid_unless_the_budget_needs_less():
    assert default_grid(0.8) == default_grid(0.6) == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert default_grid(0.4)[0] == 0.2 and default_grid(0.2)[0] == default_grid(0.05)[0] == 0.1
