import math

import pytest
from tiny_spectra import windows

from slimrank.calibrate.evidence import calibrate
from slimrank.forms import compressed_layers
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.recipe import load_recipe
from slimrank.run.steps import allocate, decompose, factorize, refine

SHORT = {"asvd": ["allocate.windows=4"], "svd-llm-lora": ["refine=[{name: lora, steps: 1, batch: 2}]"]}
NAMES = ["fwsvd", "asvd", "svd-llm-v2", "dipsvd", "cpsvd", "cpsvd-shares", "svd-llm-update", "svd-llm-lora"]


@pytest.mark.parametrize(
    "settings", [[], ["metric.variant=paper", "allocate.direction=released"], ["metric.gain=auto"]]
)
def test_dipsvds_options_run(tiny_llama, settings):
    check(tiny_llama(), load_recipe("dipsvd", settings))


@pytest.mark.parametrize("name", NAMES)
def test_a_papers_recipe_runs_within_its_budget(tiny_llama, name):
    if name == "svd-llm-lora":
        pytest.importorskip("peft")
    check(tiny_llama(), load_recipe(name, SHORT.get(name, ())))


def check(model, recipe):
    compressible = Compressible(Decoder(model))
    evidence = calibrate(compressible, windows(model.config.vocab_size), recipe.needs)
    made = decompose(compressible, evidence, recipe, keep=0.6)
    plan = refine(made, factorize(made, allocate(made, recipe, 0.6)))
    assert plan.budget.used <= plan.budget.allowed
    layers = {name: model.get_submodule(name) for name in compressed_layers(model)}
    stored = {name: sum(t.numel() for t in layer.state_dict().values()) for name, layer in layers.items()}
    assert stored == {name: linear.parameters for name, linear in plan.linears.items() if linear.rank}
    cut = [linear for linear in plan.linears.values() if linear.rank]
    assert all(0 < linear.measured < 1.5 and math.isfinite(linear.loss) for linear in cut)
