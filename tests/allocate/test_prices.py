import pytest
import torch
from tiny_spectra import problem, spectra

from slimrank.allocate.nats import Nats
from slimrank.allocate.prices import Reading, measure, ratio, told
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.metric.two_sided import TwoSided
from slimrank.spectrum.decomposition import decompose_weight

OUTPUT = "self_attn.o_proj"


def test_a_ratio_is_within_the_limit_and_one_where_nothing_was_predicted():
    found = [Reading(*one).ratio for one in ((2.0, 3.0), (1.0, 9.0), (1.0, 0.01), (1.0, -1.0), (0.0, 1.0))]
    assert found == [1.5, 4.0, 0.25, 0.25, 1.0]


def test_the_note_states_every_type():
    assert told({"a": Reading(2.0, 3.0), "b": Reading()}).endswith("a type of linear at a time: a 1.50, b 1.00.")


@torch.no_grad()
def test_readings_are_the_divergence_of_all_cuts_of_a_type(tiny_llama):
    made = spectra(tiny_llama(), TwoSided())
    asked = problem(made, form=PivotedFactorizer())
    losses = {unit: curve.losses().numpy() for unit, curve in made.curves.items()}
    ranks = {unit: 6 if unit.type == OUTPUT else None for unit in made.curves}
    readings = measure(asked, losses, ranks)
    own = [unit for unit in made.curves if unit.type == OUTPUT]
    model, ids = made.model.decoder.model, made.evidence.windows.held_out
    dense = model(ids).logits.log_softmax(-1)
    for unit in own:
        left, right = decompose_weight(made.weight(unit), made.grams(unit)).cut(6)
        model.get_submodule(unit.leader).weight.copy_(left @ right)
    changed = model(ids).logits.log_softmax(-1)
    expected = (dense.exp() * (dense - changed)).sum(-1).mean().item()
    assert list(readings) == [OUTPUT] and len(own) == len(made.model.blocks)
    assert readings[OUTPUT].measured == pytest.approx(expected, rel=1e-3)
    assert readings[OUTPUT].predicted == pytest.approx(sum(losses[unit][6] for unit in own))
    assert ratio(asked, own[0], readings) == readings[OUTPUT].ratio != 1
    assert ratio(asked, next(iter(made.curves)), readings) == 1


def test_ranks_follow_the_corrected_losses(tiny_llama, monkeypatch):
    made = spectra(tiny_llama(), TwoSided())
    asked = problem(made, form=PivotedFactorizer())
    plain = Nats().allocate(asked).ranks
    monkeypatch.setattr("slimrank.allocate.nats.measure", lambda *given: {OUTPUT: Reading(1.0, 4.0)})
    found = Nats(calibrate=True).allocate(asked)
    own = [unit for unit in plain if unit.type == OUTPUT]
    full = {unit: unit.full_rank + 1 for unit in own}  # above every rank: dense
    assert sum(found.ranks[u] or full[u] for u in own) > sum(plain[u] or full[u] for u in own)
    assert found.notes[0].endswith(f"{OUTPUT} 4.00.")
