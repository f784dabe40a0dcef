import copy
import sys

import pytest
import torch
from tiny_spectra import spectra

from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.forms.low_rank import LowRank
from slimrank.model.modules import set_module
from slimrank.refine.base import Cuts
from slimrank.refine.lora import Lora, held_out_loss, next_token_loss, train_adapter
from slimrank.store.run import Run

NONE = Cuts(LowRankFactorizer(), {})  # what is cut shows in the model


def compressed(model):
    made = spectra(model)
    for unit in made.curves:
        left, right = (factor.float() for factor in made.cut(unit, 6))
        set_module(model, unit.leader, LowRank.from_low_rank(left, right))
    return made


@pytest.fixture
def made(tiny_llama):
    pytest.importorskip("peft")
    return compressed(tiny_llama())


def test_it_lowers_the_loss_it_trains_on_and_leaves_plain_modules(made):
    model, windows = made.model.decoder.model, made.evidence.windows
    ids = windows.calibration
    kinds = {name: type(module) for name, module in model.named_modules()}
    before = next_token_loss(model, ids).item()
    notes = Lora(steps=12, batch=4, lr=1e-2, rank=4).refine(made, NONE, Run())
    assert next_token_loss(model, ids).item() < before - 0.02
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert f"{held_out_loss(made.model.decoder, windows.held_out):.4f} nats per token" in notes[0]


def test_an_adapter_changes_only_its_factor_and_by_its_rank(made):
    model = made.model.decoder.model
    before = copy.deepcopy(model.state_dict())
    name = next(iter(made.model.linears))
    train_adapter(model, [f"{name}.up"], Lora(lr=1e-2, rank=2), made.evidence.windows.calibration, range(3))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.up.weight"}
    difference = model.state_dict()[f"{name}.up.weight"] - before[f"{name}.up.weight"]
    assert torch.linalg.matrix_rank(difference, rtol=1e-4) <= 2


def test_the_same_seed_gives_the_same_model(tiny_llama):
    pytest.importorskip("peft")
    states = []
    for _ in range(2):
        made = compressed(tiny_llama())
        torch.rand(3)  # the caller's random state must not matter
        Lora(steps=2, batch=4, tokens=16).refine(made, NONE, Run())
        states.append(made.model.decoder.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_without_peft_it_says_how_to_get_it(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'slimrank\[lora\]'"):
        Lora(steps=1).refine(made, NONE, Run())
