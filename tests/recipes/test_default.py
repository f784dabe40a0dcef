import pytest
from architectures import ARCHITECTURES
from sessions import session

from slimrank.forms import compressed_layers
from slimrank.recipe import load_recipe
from slimrank.refine.distill import held_out_divergence
from slimrank.refine.training import teacher_of
from slimrank.run.pipeline import decompose_all, factorize, make_plan, refine


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slimrank_runs_on_every_architecture_and_stays_within_its_budget(name):
    model, recipe = ARCHITECTURES[name](), load_recipe("slimrank")
    made = session(model, keep=0.7, metric=recipe.metric, labels=recipe.metric.gradient_labels)
    made.form = recipe.form
    decompose_all(made)
    plan = refine(made, factorize(made, make_plan(made, recipe)))
    assert plan.budget.used <= plan.budget.allowed and compressed_layers(model)
    assert 0 < held_out_divergence(model, teacher_of(made), made.windows.held_out) < 1
