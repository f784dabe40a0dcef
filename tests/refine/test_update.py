import copy

import pytest
import torch
from tiny_spectra import spectra

from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.forms.low_rank import LowRank
from slimrank.forms.pivoted import Pivoted
from slimrank.model.decoder import set_module
from slimrank.refine.base import Cuts
from slimrank.refine.update import Update
from slimrank.rounding.resolve import resolved_left
from slimrank.store.run import Run


def compressed(model, form=LowRank):
    made = spectra(model)
    for unit in made.curves:
        left, right = (factor.float() for factor in made.cut(unit, 6))
        set_module(model, unit.leader, form.from_low_rank(left, right))
    return made


def update(made):
    return Update().refine(made, Cuts(LowRankFactorizer(), {}), Run())  # what is cut shows in the model


@pytest.mark.parametrize("dependent", [False, True])
def test_resolved_left_is_the_least_squares_solution(dependent):
    w, v, x = (torch.randn(*shape, dtype=torch.float64) for shape in [(9, 12), (4, 12), (12, 100)])
    if dependent:
        v[3] = v[0] - v[1]
    expected = torch.linalg.lstsq((v @ x).T, (w @ x).T, driver="gelsd").solution.T
    torch.testing.assert_close(resolved_left(w, v, x @ x.T), expected, rtol=1e-7, atol=1e-7)


def test_every_block_is_refitted_to_the_inputs_its_compressed_predecessors_leave(tiny_llama):
    model = tiny_llama(num_hidden_layers=3)
    dense = copy.deepcopy(model)
    made = compressed(model)
    plain = copy.deepcopy(model)
    assert update(made) == []
    probe = copy.deepcopy(model)  # updated blocks 0 and 1 before a dense block 2: what block 2 was refitted on
    probe.model.layers[2] = dense.model.layers[2]
    seen = {}
    for name, module in probe.model.layers[2].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, (args[0], out)))
    probe(made.evidence.windows.calibration)
    for name, (x, y) in seen.items():
        x, y = (t.detach().double().flatten(0, 1) for t in (x, y))
        layer = model.model.layers[2].get_submodule(name)
        before = plain.model.layers[2].get_submodule(name)
        expected = torch.linalg.lstsq(x @ layer.down.weight.double().T, y).solution.T
        torch.testing.assert_close(layer.up.weight.double(), expected.detach(), rtol=1e-3, atol=1e-3)
        scale = (layer.down.weight / before.down.weight)[:, :1]  # brought to the scale of the new U, a power of two
        assert torch.equal(layer.down.weight, before.down.weight * scale)
        assert torch.equal(scale.log2(), scale.log2().round())


def test_the_first_block_stays_as_it_is(tiny_llama):
    made = compressed(tiny_llama())
    before = copy.deepcopy(made.model.decoder.blocks[0].state_dict())
    update(made)
    for key, value in made.model.decoder.blocks[0].state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-3, atol=1e-4)


def test_another_form_is_refused_by_name(tiny_llama):
    made = compressed(tiny_llama(), Pivoted)
    with pytest.raises(UsageError, match=r"q_proj is pivoted and refine\.update needs form low_rank"):
        update(made)
