"""The whole pipeline on tiny models: exactness at full rank, plans, budgets, determinism."""

import json

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slimrank import compress, load, optimize
from slimrank.calibrate import Windows
from slimrank.calibrate.evidence import calibrate
from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate import count_parameters
from slimrank.forms import compressed_layers
from slimrank.forms.linear import weight_of
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.plan import Plan
from slimrank.recipe import load_recipe
from slimrank.run.steps import allocate, decompose, factorize


@pytest.fixture
def directory(tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def text(make_text, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(make_text(4000))
    return str(path)


@pytest.fixture
def run(directory, text):
    def run(recipe="svd-llm", **options):
        return compress(str(directory), recipe, calibration=text, samples=16, window=32, **options)

    return run


def spectra_of(model, recipe="svd-llm"):
    ids = torch.randint(3, VOCABULARY, (12, 24), generator=torch.Generator().manual_seed(0))
    compressible, chosen = Compressible(Decoder(model)), load_recipe(recipe)
    evidence = calibrate(compressible, Windows(ids[:8], ids[8:], {"seed": 0}), chosen.needs)
    return decompose(compressible, evidence, chosen), chosen


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("recipe", ["svd", "svd-llm"])
@torch.no_grad()
def test_full_rank_is_the_identity(name, recipe):
    model = ARCHITECTURES[name]()
    ids = torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))
    expected = model(input_ids=ids).logits
    spectra, chosen = spectra_of(model, recipe)
    plan = allocate(spectra, chosen, 0.5)
    full = {k: v.model_copy(update={"rank": min(v.shape), "form": "low_rank"}) for k, v in plan.linears.items()}
    factorize(spectra, plan.model_copy(update={"linears": full}))
    assert len(compressed_layers(model)) == len(full) > 0
    assert (model(input_ids=ids).logits - expected).abs().max() <= 1e-4


def test_predicted_loss_is_the_measured_one_for_every_linear(tiny_llama):
    spectra, chosen = spectra_of(tiny_llama())
    plan = allocate(spectra, chosen, 0.5)
    for name, linear in plan.linears.items():
        w = weight_of(spectra.model.linears[name]).detach().double()
        left, right = spectra.cut(spectra.model.units[name], linear.rank)
        h = spectra.evidence.input_of(name).gram()
        error = w - left @ right
        assert linear.loss == pytest.approx((error @ h * error).sum().item(), rel=1e-6)
        assert linear.relative == pytest.approx((linear.loss / (w @ h * w).sum().item()) ** 0.5, rel=1e-6)


def test_the_checkpoint_has_exactly_the_plans_parameters(run, tmp_path):
    result = run(keep=0.6)
    result.save(str(tmp_path / "out"))
    plan = Plan.load(str(tmp_path / "out" / "slimrank" / "plan.json"))
    assert plan == result.plan
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    stored = sum(p.numel() for block in loaded.model.layers for n, p in block.named_parameters() if "norm" not in n)
    assert stored == plan.budget.used <= 0.6 * plan.budget.dense
    assert loaded.dtype == torch.bfloat16  # the model's own, though the work was done in float32
    assert plan.calibration["samples"] == 16 and plan.calibration["seed"] == 3
    assert all(0 < linear.measured < 1 for linear in plan.linears.values())
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
        ids = torch.arange(20)[None]
        torch.testing.assert_close(loaded.float()(ids).logits, result.model(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", ["svd-llm-v2", "cpsvd", "slimrank"])
def test_the_file_holds_as_many_numbers_as_the_plan_says_indices_included(run, tmp_path, recipe):
    result = run(recipe, keep=0.6)
    result.save(tmp_path / "out")
    stored, linears = load_file(tmp_path / "out" / "model.safetensors"), result.plan.linears
    for name, linear in linears.items():
        assert sum(t.numel() for key, t in stored.items() if key.startswith(f"{name}.")) == linear.parameters
    used = sum(linear.parameters for linear in linears.values())
    assert used == result.plan.budget.used <= result.plan.budget.allowed
    assert result.plan.recipe.form.name in {linear.form for linear in linears.values()}


def test_same_inputs_same_result_to_the_bit(run):
    a, b = (run(keep=0.5).model.state_dict() for _ in range(2))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_edited_plan_is_applied(run, directory):
    plan = run(keep=0.5, plan_only=True).plan
    name = "model.layers.0.mlp.up_proj"
    linears = {**plan.linears, name: plan.linears[name].model_copy(update={"rank": 3})}
    edited = plan.model_copy(update={"linears": linears})
    result = compress(str(directory), plan=edited)  # text, windows and seed come from the plan
    assert compressed_layers(result.model)[name]["rank"] == 3
    assert result.plan.budget.used < plan.budget.used
    assert result.plan.keep == 0.5


def test_the_prediction_follows_an_edited_rank_and_nothing_stays_of_the_run_before(run, directory):
    plan = run("slimrank", keep=0.5).plan
    names = [f"model.layers.0.mlp.{role}_proj" for role in ("up", "down")]
    assert all(plan.linears[name].rank for name in names) and plan.notes
    linears = dict(plan.linears)
    for name in linears:  # make room for the dense one
        rank = None if name == names[1] else 1
        linears[name] = linears[name].model_copy(update={"rank": rank})
    result = compress(str(directory), plan=plan.model_copy(update={"linears": linears}))
    lowered, dense = (result.plan.linears[name] for name in names)
    assert lowered.relative > 1.5 * plan.linears[names[0]].relative
    assert (dense.form, dense.relative, dense.layer) == ("dense", 0, None)


@pytest.mark.parametrize("refine", ["[]", "[anchored, temperature]", "[anchored, {name: distill, tokens: 64}]"])
def test_a_tied_head_is_counted_once_on_every_road(tiny_llama, directory, run, refine, tmp_path):
    tiny_llama(tie_word_embeddings=True).to(torch.bfloat16).save_pretrained(directory)
    inside = run("slimrank", settings=[f"refine={refine}"])
    written = run("slimrank", settings=[f"refine={refine}"], out=tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert inside.parameters == written.parameters
    assert inside.parameters[1] == count_parameters(loaded) == count_parameters(inside.model)


def test_an_unedited_plan_gives_the_same_again(run, directory):
    first = run("slimrank", keep=0.5)
    again = compress(str(directory), plan=first.plan)
    state = first.model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in again.model.state_dict().items())
    assert again.plan.linears == first.plan.linears


def test_a_path_is_a_model(directory, text):
    result = compress(directory, "svd", keep=0.5, calibration=text, samples=8, window=16)
    assert result.loaded.name == str(directory)


def test_a_plan_for_another_text_is_refused(run, directory, make_text, tmp_path):
    plan = run(keep=0.5, plan_only=True).plan
    (tmp_path / "other.txt").write_text(make_text(4000, seed=1))
    with pytest.raises(UsageError, match="not the text that the plan was made with"):
        compress(str(directory), plan=plan, calibration=str(tmp_path / "other.txt"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p["linears"]["model.layers.0.mlp.up_proj"].update(rank=32), r"need \d+ parameters and its keep"),
        (lambda p: p.update(keep=0.2), r"need \d+ parameters and its keep, 0\.2, allows \d+"),
        (lambda p: p["linears"].pop("model.layers.0.mlp.up_proj"), r"budget\.dense is \d+: put the removed"),
        (lambda p: p["linears"]["model.layers.0.mlp.up_proj"].update(form="pivoted"), r"recipe builds 'low_rank'"),
        (lambda p: p["linears"]["model.layers.0.mlp.up_proj"].update(rank=33), r"rank 33: choose 1 to 32"),
        (lambda p: p["linears"]["model.layers.0.mlp.up_proj"].update(rank=0), r"rank 0: choose 1 to 32"),
        (lambda p: p["linears"].update(x=p["linears"]["model.layers.0.mlp.up_proj"]), r"names x, which is no linear"),
        (lambda p: p["linears"]["model.layers.0.mlp.up_proj"].update(shape=[1, 2]), r"the model has \(48, 32\)"),
        (lambda p: p["model"].update(sha256="0"), r"The plan was made for .* make it again"),
        (lambda p: p.update(version=9), r"has version 9"),
        (lambda p: p.update(linear={}), r"key 'linear'"),
        (lambda p: p["recipe"]["metric"].update(rout=1), r"rout"),
        (lambda p: p.pop("budget"), r"key 'budget'"),
        (lambda p: p["calibration"].pop("seed"), r"calibration lacks 'seed'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(run, directory, tmp_path, edit, message):
    raw = json.loads(run(keep=0.5, plan_only=True).plan.to_json())
    edit(raw)
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=message):
        compress(str(directory), plan=Plan.load(tmp_path / "plan.json"))


def test_keep_one_gives_back_the_dense_model(run, directory, tmp_path):
    result = run(keep=1.0)
    result.save(tmp_path / "out")
    assert compressed_layers(result.model) == {}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert all(linear.rank is None for linear in result.plan.linears.values())


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_keep_outside_its_range(run, keep):
    with pytest.raises(UsageError, match="--keep"):
        run(keep=keep)


def test_a_model_that_was_compressed_or_optimized_in_memory_is_not_compressed(directory, text):
    options = {"calibration": text, "samples": 8, "window": 16, "keep": 0.5}
    loaded = load(str(directory))
    compress(loaded, "svd", **options)
    with pytest.raises(UsageError, match=r"is already compressed \(slimrank\): give the dense model"):
        compress(loaded, "svd", **options)
    loaded = load(str(directory))
    optimize(loaded.model)
    with pytest.raises(UsageError, match="was optimized: load it again"):
        compress(loaded, "svd", **options)


def test_a_compressed_model_is_not_compressed_again(run, text, tmp_path):
    run(keep=0.5).save(tmp_path / "out")
    with pytest.raises(UsageError, match="already compressed"):
        compress(str(tmp_path / "out"), calibration=text)


def test_a_filter_leaves_the_rest_dense(run):
    result = run(keep=0.5, filter=lambda name, module: module.weight.shape[0] == 48)
    assert len(compressed_layers(result.model)) == len(result.plan.linears) == 4


@pytest.mark.parametrize("block", [0, 1])
def test_a_filter_may_leave_whole_blocks_dense(run, block):
    result = run(recipe="dipsvd", keep=0.5, filter=lambda name, module: f"layers.{block}." in name)
    assert {linear.block for linear in result.plan.linears.values()} == {block} and len(result.plan.linears) == 7
    assert set(compressed_layers(result.model)) == set(result.plan.linears)


def test_a_filter_that_matches_nothing_is_refused(run):
    with pytest.raises(UsageError, match="--only and --skip, or the filter, leave none"):
        run(keep=0.5, filter=lambda name, module: "experts" in name)


def test_a_missing_model_and_a_missing_text(directory):
    with pytest.raises(SlimrankError, match=r"MODEL \./nowhere cannot be loaded"):
        load("./nowhere")
    with pytest.raises(UsageError, match="--calibration is missing"):
        compress(str(directory))
    with pytest.raises(UsageError, match="--dtype int3"):
        load(str(directory), dtype="int3")
    with pytest.raises(UsageError, match="--device"):
        load(str(directory), device="nonsense")


def test_weights_that_are_not_finite_stop_the_run(run, directory):
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.model.layers[0].self_attn.q_proj.weight.data[0, 0] = float("inf")
    model.save_pretrained(directory)
    with pytest.raises(SlimrankError, match=r"layers\.0\.self_attn\.q_proj\.weight holds NaN or Inf"):
        run()
