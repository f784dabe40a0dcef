import pytest
from sessions import session

from slimrank.factorize import FACTORIZERS
from slimrank.forms import Form
from slimrank.numerics.grams import squared_error
from slimrank.recipe import Recipe
from slimrank.run.pipeline import factorize, make_plan


@pytest.mark.parametrize("form", ["low_rank", "pivoted", {"name": "columns", "gain": 0.0, "search": "every"}])
def test_the_plan_counts_and_names_what_is_built(tiny_llama, form):
    recipe = Recipe(name="a", metric="whitened", allocate="uniform", form=form)
    made = session(tiny_llama(), keep=0.7)
    made.form = recipe.form
    before = make_plan(made, recipe)
    plan = factorize(made, before)
    stored = 0
    for name, linear in plan.linears.items():
        layer = made.decoder.model.get_submodule(name)
        numbers = sum(tensor.numel() for tensor in layer.state_dict().values())
        assert isinstance(layer, Form) and linear.form == layer.form and linear.layer == layer.entry()
        assert linear.parameters == numbers <= before.linears[name].parameters
        error = squared_error(made.site(name).weight - layer.dense_weight(), made.metric.grams(made.site(name)))
        assert linear.loss == pytest.approx(before.linears[name].loss, rel=1e-9) == pytest.approx(error, rel=1e-4)
        stored += numbers
    assert plan.budget.used == stored <= plan.budget.allowed
    plain = {"low_rank"} if recipe.form.name == "columns" else set()  # where no column pays
    assert {linear.form for linear in plan.linears.values()} == {recipe.form.name} | plain
    assert recipe.form.name in FACTORIZERS
