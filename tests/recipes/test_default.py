import pytest
from architectures import ARCHITECTURES
from tiny_spectra import windows

from slimrank.calibrate.evidence import calibrate
from slimrank.forms import compressed_layers
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.recipe import load_recipe
from slimrank.refine.distill import held_out_divergence
from slimrank.refine.training import teacher_of
from slimrank.run.steps import allocate, decompose, factorize, refine


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slimrank_runs_on_every_architecture_and_stays_within_its_budget(name):
    model, recipe = Compressible(Decoder(ARCHITECTURES[name]())), load_recipe("slimrank")
    evidence = calibrate(model, windows(model.decoder.model.config.vocab_size), recipe.needs)
    made = decompose(model, evidence, recipe, keep=0.7)
    plan = refine(made, factorize(made, allocate(made, recipe, 0.7)))
    assert plan.budget.used <= plan.budget.allowed and compressed_layers(model.decoder.model)
    assert 0 < held_out_divergence(model.decoder.model, teacher_of(model), evidence.windows.held_out) < 1
