import math

import pytest
from sessions import session

from slimrank.forms import compressed_layers
from slimrank.recipe import load_recipe
from slimrank.run.pipeline import decompose_all, factorize, make_plan, refine

SHORT = {"asvd": ["allocate.windows=4"], "svd-llm-lora": ["refine=[{name: lora, steps: 1, batch: 2}]"]}
NAMES = ["fwsvd", "asvd", "svd-llm-v2", "dipsvd", "cpsvd", "cpsvd-shares", "svd-llm-update", "svd-llm-lora"]


@pytest.mark.parametrize("settings", [[], ["metric.variant=released"], ["metric.gain=auto"]])
def test_dipsvds_options_run(tiny_llama, settings):
    check(tiny_llama(), load_recipe("dipsvd", settings))


@pytest.mark.parametrize("name", NAMES)
def test_a_papers_recipe_runs_within_its_budget(tiny_llama, name):
    if name == "svd-llm-lora":
        pytest.importorskip("peft")
    check(tiny_llama(), load_recipe(name, SHORT.get(name, ())))


def check(model, recipe):
    made = session(model, metric=recipe.metric, labels="text" if recipe.gradients else None)
    decompose_all(made)
    plan = refine(made, factorize(made, make_plan(made, recipe)))
    assert plan.budget.used <= plan.budget.allowed
    stored = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in compressed_layers(model)}
    assert stored == {name: linear.parameters for name, linear in plan.linears.items() if linear.rank}
    cut = [linear for linear in plan.linears.values() if linear.rank]
    assert all(0 < linear.measured < 1.5 and math.isfinite(linear.loss) for linear in cut)
