import re
from dataclasses import replace

import pytest
import torch
from tiny_spectra import problem, spectra
from torch import Tensor

from slimrank.allocate import measure
from slimrank.allocate.asvd import PerplexityScan, common_threshold, default_grid
from slimrank.allocate.budget import fit_ranks, used
from slimrank.allocate.duo import MeasuredModules, Scan, choose, settle
from slimrank.allocate.measure import Damage
from slimrank.errors import SlimrankError, UsageError
from slimrank.forms.linear import weight_of
from slimrank.spectrum.spectra import Spectra


@pytest.fixture(scope="module")
def made(tiny_llama) -> Spectra:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return spectra(tiny_llama(**sizes))


def whole_model_logits(made: Spectra, ranks: dict, ids: Tensor) -> Tensor:
    """The whole model run with weights that are the multiplied-out cuts."""
    linears = made.model.linears
    before = {name: weight_of(dense).detach().clone() for name, dense in linears.items()}
    with torch.no_grad():
        for unit, rank in ranks.items():
            if rank is not None:
                decomposition = made.decomposition(unit)
                weight_of(linears[unit.leader]).copy_(decomposition.left[:, :rank] @ decomposition.right[:rank])
        logits = made.model.decoder.model(input_ids=ids).logits.double()
        for name, weight in before.items():
            weight_of(linears[name]).copy_(weight)
    return logits


def test_is_the_whole_models_divergence_and_likelihood(made):
    base = fit_ranks(problem(made), dict.fromkeys(made.curves, 0.6))
    damage, ids = Damage(made, base, windows=5), made.evidence.windows.calibration[:5]
    units = list(made.curves)
    dense = whole_model_logits(made, {}, ids).log_softmax(-1)
    for changes in ({}, {units[0]: 2}, {units[-1]: None}, {units[9]: 1, units[12]: 5}, dict.fromkeys(units, 3)):
        model = whole_model_logits(made, base | changes, ids).log_softmax(-1)
        kl = (dense.exp() * (dense - model)).sum() / 5
        nats = -model[:, :-1].gather(2, ids[:, 1:, None]).mean()
        assert damage.kl(changes) == pytest.approx(kl.item(), rel=1e-5)
        assert damage.nats(changes) == pytest.approx(nats.item(), rel=1e-5)
    assert damage.kl(dict.fromkeys(units)) == pytest.approx(0, abs=1e-4)
    layers = measure.cut(made, units[9], 1) | measure.cut(made, units[12], 5)
    assert damage.kl_with(layers) == damage.kl({units[9]: 1, units[12]: 5})
    model = made.model.decoder.model
    assert all(model.get_submodule(name) is dense for name, dense in made.model.linears.items())


def test_runs_only_the_blocks_from_the_change_on(made):
    units = list(made.curves)
    damage = Damage(made, windows=2)
    assert damage.passes == 3
    damage.kl({units[0]: 2})
    assert damage.passes == 3 + 3  # the base, which is the dense model, and the changed one
    damage.kl({units[7]: 2})
    damage.kl({units[14]: 2})
    assert damage.passes == 6 + 2 + 1
    damage.kl({units[14]: 2})
    damage.kl({units[3]: None})
    assert damage.passes == 9
    assert damage.account(5) == "Measured in 9 block passes of 2 windows, instead of 15 for 5 whole models."


def test_without_prefixes_it_measures_the_same_and_holds_less(made, monkeypatch):
    damage = Damage(made, windows=5)
    monkeypatch.setattr(made.held, "room", 0)  # as where there is no memory for them
    lean, units = Damage(made, windows=5, prefixes=False), list(made.curves)
    assert lean.passes == 0
    for ranks in ({units[0]: 2}, dict.fromkeys(units, 3), {units[-1]: 4}):
        assert lean.nats(ranks) == pytest.approx(damage.nats(ranks), rel=1e-6)
        assert lean.kl(ranks) == pytest.approx(damage.kl(ranks), rel=1e-5)
    assert lean.passes == 3 * (2 * 3 + 1)  # both kinds of measurement, and the dense model
    expected = damage.nats(dict.fromkeys(units, 2))
    monkeypatch.setattr(Spectra, "decomposition", None)  # all factors are held
    assert lean.nats(dict.fromkeys(units, 2)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("numbers", [1, 3 * 32 * 320])
def test_the_head_may_see_a_batch_in_parts(made, monkeypatch, numbers):
    units = list(made.curves)
    whole = Damage(made, windows=8)
    monkeypatch.setattr(measure, "CPU_LOGITS", numbers)
    parts = Damage(made, windows=8)
    assert len(whole._parts) < len(parts._parts) == (8 if numbers == 1 else 3)
    for ranks in ({}, {units[0]: 2}, {units[-1]: 4}):
        assert parts.kl(ranks) == pytest.approx(whole.kl(ranks), rel=1e-6, abs=1e-5)
        assert parts.nats(ranks) == pytest.approx(whole.nats(ranks), rel=1e-6)


def test_a_loss_that_is_not_a_number_is_refused(made):
    first, second, *_ = made.curves
    damage = Damage(made, windows=2)
    layers = measure.cut(made, first, 2) | measure.cut(made, second, 2)
    weight_of(layers[first.leader].up).data[0, 0] = torch.nan
    with pytest.raises(SlimrankError, match=rf"is nan with 2 linears changed, the first of them {first.leader}: try"):
        damage.kl_with(layers)


def test_more_windows_than_calibrated_are_refused(made):
    with pytest.raises(UsageError, match=r"allocate.windows 13 is more than the 12 calibration windows"):
        Damage(made, windows=13)


@pytest.mark.parametrize("keep", [0.4, 0.8])
def test_measured_modules_spends_the_budget_where_it_helps(made, keep):
    asked = problem(made, keep)
    allocation = MeasuredModules(windows=4, grid=(0.1, 0.3, 0.5, 0.7, 1.0)).allocate(asked)
    assert used(asked, allocation.ranks) <= asked.budget
    damage = Damage(made, windows=12)
    uniform = fit_ranks(asked, dict.fromkeys(made.curves, keep))
    assert damage.kl(allocation.ranks) < 1.05 * damage.kl(uniform)
    assert "block passes of 4 windows" in allocation.notes[0]


def test_measures_in_less_than_half_of_the_passes_of_whole_models(tiny_llama):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 6, "num_attention_heads": 2}
    deep = spectra(tiny_llama(**sizes))
    (note,) = MeasuredModules(windows=1, grid=(0.1, 0.3, 0.5, 0.7, 1.0)).allocate(problem(deep, 0.5)).notes
    passes, _, whole, _ = map(int, re.findall(r"\d+", note))
    assert 2 * passes < whole


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("tolerance", [0.0, 5.0])
def test_settles_on_the_best_assignment_without_measuring_all(made, keep, tolerance):
    asked, generator = problem(made, keep), torch.Generator().manual_seed(int(10 * keep))
    full = {}
    for unit in made.curves:
        ranks = [(rank,) for rank in (1, 2, 3, 4, 5, 6, 7, 8, 9, None)]
        falls = torch.rand(len(ranks), generator=generator) * torch.logspace(2, -1, len(ranks))
        full[unit,] = dict(zip(ranks, falls.flip(0).cumsum(0).flip(0).tolist(), strict=True))
    scans = {group: Scan(list(losses), (5,), losses.__getitem__) for group, losses in full.items()}
    for scan in scans.values():
        scan.start()
    found = settle(asked, scans, 50_000, tolerance)
    best = choose(asked, full, 50_000)
    assert used(asked, found) <= asked.budget
    value = sum(full[unit,][(rank,)] for unit, rank in found.items())
    least = sum(full[group][ranks] for group, ranks in best.items())
    assert least <= value <= least + tolerance + 1e-6
    assert sum(len(scan.known) for scan in scans.values()) < (0.85 if tolerance == 0 else 0.8) * 10 * len(full)


def test_equal_damages_reduce_to_uniform(made):
    queries = [unit for unit in made.curves if unit.shape == (16, 16)]
    same = problem(replace(made, curves={unit: made.curves[unit] for unit in queries}), 0.75)
    damages = {(unit,): {(rank,): 1.0 / rank for rank in range(1, 8)} for unit in queries}
    assert choose(same, damages, 10_000) == dict.fromkeys([(unit,) for unit in queries], (6,))


def test_scan_takes_the_lowest_threshold_within_the_budget(made):
    for keep in (0.5, 0.8):
        asked = problem(made, keep)
        damage = Damage(made, windows=3)
        scans = {
            unit: {rank: damage.nats({unit: rank}) for rank in (2, 3, 5)} | {None: damage.nats({})}
            for unit in made.curves
        }
        ranks = common_threshold(asked, scans)
        by_hand = {}
        for threshold in sorted((loss for losses in scans.values() for loss in losses.values()), reverse=True):
            tried = {u: min((r for r in (2, 3, 5) if v[r] <= threshold), default=None) for u, v in scans.items()}
            if sum(asked.cost(unit, rank) for unit, rank in tried.items()) > asked.budget:
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
