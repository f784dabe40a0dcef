"""Rounding as a refiner: what it writes into the model, and against which inputs."""

import pytest
import torch
from tiny_spectra import spectra

from slimrank.calibrate.collect import watch_inputs
from slimrank.calibrate.moments import Moments
from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.forms import Dense, LowRank, Pivoted
from slimrank.forms.linear import weight_of
from slimrank.metric.two_sided import TwoSided
from slimrank.metric.whitened import Whitened
from slimrank.model.decoder import set_module
from slimrank.model.units import stacked
from slimrank.numerics.grams import Grams, squared_error
from slimrank.refine.base import Cuts
from slimrank.refine.round import Round
from slimrank.rounding.feedback import Factor, round_weight
from slimrank.rounding.grid import Grid
from slimrank.store.run import Run

EXACT = {"mix": 0.0, "shrink": 0.0}


def run(made, cuts, **options):
    Round(**options).refine(made, cuts, Run())
    modules = {name: made.model.decoder.model.get_submodule(name) for name in made.model.linears}
    return {name: module for name, module in modules.items() if module is not made.model.linears[name]}


def inputs(made, name, modules):
    """E[x x^T] of a linear in the model as it is now."""
    windows, moments = made.evidence.windows.calibration, Moments()
    with torch.no_grad(), watch_inputs({name: modules[name]}, moments):
        for window in windows:
            made.model.decoder.model(window[None])
    return moments.input_of(name).mean()


def test_every_linear_is_rounded_as_gptq_does_against_the_inputs_of_the_rounded_model(tiny_llama):
    made = spectra(tiny_llama(num_hidden_layers=2), Whitened())
    layers = run(made, Cuts(LowRankFactorizer(), {}), bits=4, group=16, feedback="inputs", **EXACT)
    assert layers.keys() == made.model.linears.keys()
    for name in (next(iter(layers)), list(layers)[-1]):
        layer, dense = layers[name], made.model.linears[name]
        assert isinstance(layer, Dense) and layer.entry() == {"form": "dense", "bits": 4, "group": 16}
        gram = inputs(made, name, layers)
        expected = round_weight(weight_of(dense), Grid(4, 16), right=Factor.of(gram, 0.01))
        error, least = (
            squared_error(w - weight_of(dense), Grams(None, gram)) for w in (layer.dense_weight(), expected.weight)
        )
        assert error == pytest.approx(least, rel=1e-3)
        assert (layer.dense_weight() != expected.weight).float().mean() < 0.01  # ties that float32 sums decide


@pytest.mark.parametrize("metric", [Whitened(), TwoSided()])
def test_a_unit_gets_the_rank_and_the_grid_of_the_plan_and_the_others_stay(tiny_llama, metric):
    made = spectra(tiny_llama(), metric)
    names = list(made.model.linears)
    units = [made.model.units[name] for name in names[:3]]
    cuts = Cuts(PivotedFactorizer(), {units[0]: 6, units[1]: 6}, {units[1]: Grid(8), units[2]: Grid(3, 8)})
    layers = run(made, cuts)
    assert [type(layers[name]) for name in names[:3]] == [Pivoted, LowRank, Dense] and len(layers) == 3
    assert layers[names[1]].entry() == {"form": "low_rank", "rank": 6, "bits": 8}
    assert layers[names[2]].entry() == {"form": "dense", "bits": 3, "group": 8}
    whole = weight_of(made.model.linears[names[1]]).double()
    left, right = made.cut(units[1], 6)
    assert (layers[names[1]].dense_weight() - left @ right).norm() < 0.1 * whole.norm()


def test_factors_that_were_built_before_are_rounded_as_they_are(tiny_llama):
    made = spectra(tiny_llama(), Whitened())
    name = next(iter(made.model.linears))
    left, right = (factor.float() for factor in made.cut(made.model.units[name], 5))
    set_module(made.model.decoder.model, name, LowRank.from_low_rank(left, right))
    cuts = Cuts(LowRankFactorizer(), {made.model.units[name]: 5})
    layer = run(made, cuts, bits=8, group=None, rebuild=False, resolve=False, feedback="none", **EXACT)[name]
    assert isinstance(layer, LowRank) and layer.rank == 5
    assert (layer.dense_weight() - left.double() @ right.double()).abs().max() < 0.02 * (left @ right).abs().max()


def test_what_cannot_be_rounded_is_refused(tiny_llama):
    made = spectra(tiny_llama(), Whitened())
    pair = stacked([made.model.units[name] for name in list(made.model.linears)[:2]])
    with pytest.raises(UsageError, match="share one right factor"):
        run(made, Cuts(PivotedFactorizer(joint=True), {pair: 4}), bits=4)
    name = next(iter(made.model.linears))
    left, right = (factor.float() for factor in made.cut(made.model.units[name], 5))
    set_module(made.model.decoder.model, name, Pivoted.from_low_rank(left, right))
    with pytest.raises(UsageError, match="is pivoted and"):
        run(made, Cuts(PivotedFactorizer(), {made.model.units[name]: 5}), bits=8, rebuild=False)
