import pytest
import torch
import yaml

from slimrank.errors import UsageError
from slimrank.recipe import Recipe, load_recipe, settings_by_recipe, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_survives_its_own_yaml(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.summary and recipe.source
    (tmp_path / "copy.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "copy.yaml") == recipe


def test_settings_override_keys_and_open_short_names():
    recipe = load_recipe("svd-llm", ["route=cholesky", "form.multiple=8"])
    assert recipe.route == "cholesky" and recipe.form.multiple == 8


def test_a_setting_names_a_refiner_by_its_name():
    recipe = load_recipe("slimrank-refined", ["refine.temperature.name=temperature", "refine.distill.tokens=500"])
    assert [step.name for step in recipe.refine] == ["anchored", "temperature", "distill"]
    assert recipe.refine[2].tokens == 500
    assert load_recipe("svd-llm", ["refine.distill.tokens=500"], "distill").refine[0].tokens == 500


def test_a_recipe_that_is_one_already_is_kept():
    recipe = load_recipe("svd")
    assert load_recipe(recipe) == recipe and isinstance(recipe, Recipe)


def test_refined_keeps_what_is_solved_and_replaces_what_is_trained():
    recipe = load_recipe("slimrank-refined")
    solved = ["anchored", "temperature"]
    assert [step.name for step in recipe.refined("none").refine] == solved
    distilled = recipe.refined("distill")
    assert [step.name for step in distilled.refine] == [*solved, "distill"]
    assert distilled.name == "slimrank-refined+distill"
    assert load_recipe("svd-llm").refined("distill").refine == load_recipe("svd-llm-distilled").refine
    assert [step.name for step in recipe.refined("scales").sized().refine] == ["round", "temperature", "scales"]


def test_gradients_are_taken_on_the_metrics_tokens_unless_another_step_needs_them_all():
    windows = torch.zeros(10, 256)
    assert len(load_recipe("slimrank", ["metric.tokens=1000"]).needs.gradient_windows(windows)) == 4
    assert len(load_recipe("slimrank", ["metric.tokens=null"]).needs.gradient_windows(windows)) == 10
    assert len(load_recipe("dipsvd", ["metric={name: two_sided, tokens: 1000}"]).needs.gradient_windows(windows)) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rout=eigen"], r"Unknown recipe key 'rout', did you mean 'route'"),
        (["metrik.alpha=1"], r"has no key 'metrik', did you mean 'metric'"),
        (["route=qr"], r"'route': input should be 'projector', 'cholesky' or 'eigen', not 'qr'"),
        (["metric=white"], r"metric\.name is 'white': choose one of identity"),
        (["form.multiple=0"], r"'form\.multiple': .*greater than or equal to 1"),
        (["allocate.name"], r"must read key=value"),
        (["allocate.name=[1"], r"value is not readable"),
        (["refine=distill"], r"refine must be a list"),
        (["refine=[]", "refine.distill.tokens=5"], r"the recipe has no key 'distill'; the keys there are none"),
        (
            ["refine=[distill]", "refine.tokens=5"],
            r"say which option of 'tokens', such as refine\.tokens\.option=value",
        ),
        (["refine=[distill, 3, {name: [x]}]", "refine.distil.lr=5"], r"no key 'distil', did you mean 'distill'"),
        (["metrics=1"], r"Unknown recipe key 'metrics', did you mean 'metric'"),
    ],
)
def test_a_bad_setting_names_the_key_and_its_neighbours(settings, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("svd-llm", settings)


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        ("dipsvd", "metric.gain=-1", r"'metric\.gain': input should be 'auto' or greater than 0, not -1\."),
        ("dipsvd", "metric.gain=much", r"'metric\.gain': input should be 'auto' or a valid number, .*not 'much'\."),
        (
            "dipsvd",
            "allocate.clip=[0.98, 0.3]",
            r"'allocate\.clip': the first share should be below the second",
        ),
        ("dipsvd", "allocate.clip=[0.3]", r"'allocate\.clip\.1': field required, not \[0\.3\]"),
        ("asvd", "allocate.grid=[]", r"'allocate\.grid': tuple should have at least 1 item"),
        ("asvd", "allocate.grid=[0.5, 1.0]", r"'allocate\.grid\.1': input should be less than 1, not 1\.0"),
    ],
)
def test_a_value_out_of_its_range_says_which_there_are(recipe, setting, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(recipe, [setting])
    with pytest.raises(UsageError, match=r"'metric\.variant': input should be 'paper' or 'released', not 'p'\."):
        load_recipe("dipsvd", ["metric.variant=p"])


def test_an_unknown_recipe_lists_those_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"no recipe 'svdllm'.*svd-llm"):
        load_recipe("svdllm")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "metric: 3\nallocate: uniform\nform: low_rank", ""])
def test_a_broken_file_is_one_sentence(text, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


def test_no_code_runs_from_a_recipe(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"summary: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'touched'}]")
    with pytest.raises(UsageError, match="not readable YAML"):
        load_recipe(path)
    assert yaml.safe_load("a: 1") == {"a": 1} and not (tmp_path / "touched").exists()


def test_settings_are_for_all_recipes_or_for_the_one_they_name():
    settings = ["form.multiple=8", "duo-svd:allocate={name: measured_modules, windows: 4}"]
    assert settings_by_recipe(["svd", "duo-svd"], settings) == {
        "svd": ["form.multiple=8"],
        "duo-svd": ["form.multiple=8", "allocate={name: measured_modules, windows: 4}"],
    }
    with pytest.raises(UsageError, match="'asvd' is none of the recipes svd, duo-svd"):
        settings_by_recipe(["svd", "duo-svd"], ["asvd:allocate.windows=4"])
