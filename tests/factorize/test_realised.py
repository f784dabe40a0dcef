import pytest
from tiny_spectra import spectra

from slimrank.factorize import FACTORIZERS
from slimrank.forms import Form
from slimrank.numerics.grams import squared_error
from slimrank.recipe import Recipe
from slimrank.run.steps import allocate, factorize


@pytest.mark.parametrize("form", ["low_rank", "pivoted", {"name": "columns", "gain": 0.0, "search": "every"}])
def test_the_plan_counts_and_names_what_is_built(tiny_llama, form):
    recipe = Recipe(name="a", metric="whitened", allocate="uniform", form=form)
    made = spectra(tiny_llama())
    before = allocate(made, recipe, 0.7)
    plan = factorize(made, before)
    stored = 0
    for name, linear in plan.linears.items():
        layer, unit, promised = (
            made.model.decoder.model.get_submodule(name),
            made.model.units[name],
            before.linears[name],
        )
        numbers = sum(tensor.numel() for tensor in layer.state_dict().values())
        assert isinstance(layer, Form) and linear.form == layer.form and linear.layer == layer.entry()
        assert linear.parameters == numbers <= promised.parameters
        error = squared_error(made.weight(unit) - layer.dense_weight(), made.grams(unit))
        assert linear.loss == pytest.approx(error, rel=1e-4)
        better = recipe.form.searches and linear.form == "columns"
        assert linear.loss < promised.loss if better else linear.loss == pytest.approx(promised.loss, rel=1e-9)
        stored += numbers
    assert plan.budget.used == stored <= plan.budget.allowed
    plain = {"low_rank"} if recipe.form.name == "columns" else set()  # where no column pays
    assert {linear.form for linear in plan.linears.values()} == {recipe.form.name} | plain
    assert recipe.form.name in FACTORIZERS
