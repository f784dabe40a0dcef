"""Linears that are factorised as one, from the spectra to the checkpoint."""

import json

import pytest
import torch
from joined import joined
from safetensors.torch import load_file
from tiny_spectra import problem, spectra
from transformers import AutoModelForCausalLM

from slimrank import compress
from slimrank.allocate.prices import Reading, measure, ratio
from slimrank.errors import UsageError
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.forms import compressed_layers
from slimrank.forms.joint import Joint
from slimrank.metric.two_sided import TwoSided
from slimrank.metric.whitened import Whitened
from slimrank.numerics.grams import Blocks, Grams
from slimrank.plan import Plan
from slimrank.recipe import load_recipe
from slimrank.refine.anchored import Anchored
from slimrank.refine.base import Cuts
from slimrank.run.steps import allocate, decompose, factorize
from slimrank.serve.export.dense import multiplied_out
from slimrank.spectrum.curve import curve
from slimrank.spectrum.decomposition import decompose_weight
from slimrank.store.run import Run

BLOCK = "model.layers.0"
NAMES = tuple(f"{BLOCK}.self_attn.{name}_proj" for name in "qkv")
PLAIN = "refine=[]"
FORM = PivotedFactorizer(joint=True)


def ready(model, metric=None):
    """Spectra with those of units of several, and the first of these units."""
    made = spectra(model, metric or TwoSided(shrink=0.3), stacks=True)
    return made, next(iter(made.stacks))


def weighed(made):
    """The matrices L_i^T W_i R of q, k and v, stacked."""
    right = torch.linalg.cholesky(made.metric.right(made.evidence.input_of(NAMES[0])))
    lefts = [torch.linalg.cholesky(made.metric.left(made.evidence.output_of(name))) for name in NAMES]
    weights = [made.model.linears[name].weight.detach().double() for name in NAMES]
    return torch.cat([left.T @ weight @ right for left, weight in zip(lefts, weights, strict=True)])


def test_units_of_several_are_the_linears_of_one_module_with_one_input(tiny_llama):
    made, _ = ready(tiny_llama())
    found = [unit.names for unit in made.stacks]
    assert found[:2] == [NAMES, tuple(f"{BLOCK}.mlp.{name}_proj" for name in ("gate", "up"))]
    assert len(found) == 4
    assert decompose(made.model, made.evidence, load_recipe("slimrank", ["form=pivoted"])).stacks == {}


def test_a_units_spectrum_is_that_of_the_weighed_weights_stacked(tiny_llama):
    made, unit = ready(tiny_llama())
    torch.testing.assert_close(made.stacks[unit].values, torch.linalg.svdvals(weighed(made)), rtol=1e-6, atol=1e-9)
    assert (unit.shape, unit.role) == ((64, 32), "self_attn.q_proj+k_proj+v_proj")


@pytest.mark.parametrize("bases", [True, False])
@pytest.mark.parametrize("route", ["projector", "cholesky"])
def test_a_block_diagonal_gram_is_its_blocks(bases, route):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(20, 9, generator=generator), torch.randn(9, 40, generator=generator).double()
    lefts = [g @ g.T for g in (torch.randn(n, 2 * n, generator=generator).double() for n in (7, 13))]
    blocks, whole = Grams(Blocks((7, 13), lefts.__getitem__), x @ x.T), Grams(torch.block_diag(*lefts), x @ x.T)
    for rank in (1, 4, 9):
        ours, theirs = (decompose_weight(weight, grams, route, rank).cut(rank) for grams in (blocks, whole))
        torch.testing.assert_close(ours[0] @ ours[1], theirs[0] @ theirs[1], rtol=1e-8, atol=1e-8)
    held_out = Grams(right=x[:, :20] @ x[:, :20].T)
    ours, theirs = (curve(weight, grams, held_out, route, bases=bases) for grams in (blocks, whole))
    torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(ours.measured, theirs.measured, rtol=1e-4, atol=1e-6)


def test_what_is_built_loses_what_the_plan_predicts(tiny_llama):
    made, _ = ready(tiny_llama())
    plan = joined(allocate(made, load_recipe("slimrank", [PLAIN]), 0.6), 9)
    built = factorize(made, plan)
    layers = {name: made.model.decoder.model.get_submodule(name) for name in NAMES}
    assert all(isinstance(layer, Joint) for layer in layers.values())
    right = made.metric.right(made.evidence.input_of(NAMES[0]))
    lefts = [made.metric.left(made.evidence.output_of(name)) for name in NAMES]
    errors = [made.model.linears[name].weight.double() - layers[name].dense_weight() for name in NAMES]
    lost = sum((e.T @ left @ e * right).sum().item() for e, left in zip(errors, lefts, strict=True))
    best = torch.linalg.svdvals(weighed(made))[9:].square().sum().item()
    assert lost == pytest.approx(best, rel=1e-4)
    assert built.linears[NAMES[0]].loss == pytest.approx(best, rel=1e-6)
    assert [built.linears[name].loss for name in NAMES[1:]] == [0, 0]
    whole = weighed(made).square().sum().item()
    assert built.linears[NAMES[2]].relative == pytest.approx((best / whole) ** 0.5, rel=1e-6)
    assert all(built.linears[name].measured == built.linears[NAMES[0]].measured for name in NAMES)
    stored = sum(t.numel() for name in NAMES for t in layers[name].state_dict().values())
    assert stored == sum(built.linears[name].parameters for name in NAMES) == 9 * (64 + 32 - 9) + 4 + 2 + 2


def test_anchored_on_an_uncompressed_prefix_is_the_plain_cut(tiny_llama):
    made, unit = ready(tiny_llama(), Whitened())
    left, right = decompose_weight(made.weight(unit), made.grams(unit)).cut(8)
    Anchored(mix=0.0, shrink=0.0).refine(made, Cuts(FORM, {unit: 8}), Run())
    found = torch.cat([made.model.decoder.model.get_submodule(name).dense_weight() for name in NAMES])
    torch.testing.assert_close(found, left @ right, atol=2e-3, rtol=2e-3)


def test_the_prices_of_units_of_several_are_corrected_by_all_their_types(tiny_llama):
    made, unit = ready(tiny_llama())
    asked, losses = problem(made, form=FORM), {one: known.losses().numpy() for one, known in made.stacks.items()}
    readings = measure(asked, losses, {unit: 8})
    kinds = [made.model.units[name].type for name in NAMES]
    assert list(readings) == kinds and len(kinds) == 3
    assert {reading.predicted for reading in readings.values()} == {losses[unit][8]}
    assert ratio(asked, unit, readings) == pytest.approx(readings[kinds[0]].ratio)
    one = {kinds[0]: Reading(1.0, 2.5)}
    assert ratio(asked, unit, one) == pytest.approx((2.5 + 1 + 1) / 3)


def test_measured_prices_and_units_of_several_go_together(tiny_llama):
    made, _ = ready(tiny_llama())
    plan = allocate(made, load_recipe("slimrank", ["allocate.calibrate=true", PLAIN]), 0.6)
    assert "KL on the held-out windows" in plan.notes[0] and plan.budget.used <= plan.budget.allowed


@pytest.fixture
def directory(tiny_llama, tiny_tokenizer, make_text, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(make_text(4000))
    return tmp_path / "dense"


@pytest.fixture
def plan(directory):
    options = {"calibration": str(directory.parent / "text.txt"), "samples": 16, "window": 32}
    return joined(compress(directory, "slimrank", keep=0.6, plan_only=True, **options).plan, 10)


@torch.no_grad()
def test_the_checkpoint_loads_and_multiplies_out(directory, plan, tmp_path):
    result = compress(directory, plan=plan)  # in memory
    assert compress(directory, plan=plan, out=tmp_path / "out").plan.linears == result.plan.linears
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(3, 23)[None]
    logits = model(tokens).logits
    torch.testing.assert_close(logits, result.model(tokens).logits, rtol=1e-5, atol=1e-5)
    leads = [m.leads for m in model.modules() if isinstance(m, Joint)]
    assert (leads.count(True), leads.count(False)) == (4, 6)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert f"{NAMES[0]}.pivots.weight" in stored and f"{NAMES[1]}.pivots.weight" not in stored
    for name, linear in result.plan.linears.items():
        assert sum(t.numel() for key, t in stored.items() if key.startswith(f"{name}.")) == linear.parameters
    torch.testing.assert_close(multiplied_out(model)(tokens).logits, logits, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.bfloat16, device_map="cpu")
    assert (again.eval()(tokens).logits.float() - logits).norm() < 0.1 * logits.norm()


def test_an_applied_plan_gives_the_same_again(directory, plan):
    first = compress(directory, plan=plan)
    again = compress(directory, plan=first.plan)
    state = first.model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in again.model.state_dict().items())
    assert again.plan.linears == first.plan.linears and compressed_layers(again.model)[NAMES[1]]["leader"] == "q_proj"


@pytest.mark.parametrize("recipe", ["slimrank", "slimrank-refined"])
def test_refiners_train_the_shared_factor_once(directory, plan, recipe):
    settings = ["refine.distill.tokens=512"] if recipe == "slimrank-refined" else []
    chosen = plan.model_copy(update={"recipe": load_recipe(recipe, settings)})
    result = compress(directory, plan=chosen)
    tokens = torch.arange(3, 23)[None]
    assert result.model(tokens).logits.isfinite().all()
    names = [name for name, _ in result.model.named_parameters() if name.endswith("pivots.weight")]
    assert len(names) == 2 * (1 + 1 + 2)  # of q k v, of gate and up, of o and down


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda q, k, v: k.update(rank=3), r"q_proj, .*k_proj, .*v_proj one unit but several ranks"),
        (lambda *qkv: [one.update(rank=33) for one in qkv], r"rank 33: choose 1 to 32"),
        (lambda q, k, v: q.update(unit=None, form="pivoted"), r"k_proj the unit .*q_proj, which is not the first"),
        (lambda q, k, v: q.update(rank=None), r"k_proj the unit .*q_proj, which is not the first"),
        (lambda q, k, v: k.update(unit="x"), r"k_proj the unit x, which is not the first of several linears"),
        (lambda q, k, v: k.update(unit=None), r"the form 'joint', but its recipe builds 'pivoted'"),
        (lambda q, k, v: k.update(unit=None, form="pivoted"), r"q_proj, .*v_proj one unit, .*: set unit to null"),
    ],
)
def test_a_plan_whose_units_do_not_fit_is_refused(directory, plan, tmp_path, edit, message):
    raw = json.loads(plan.to_json())
    edit(*(raw["linears"][name] for name in NAMES))
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=message):
        compress(directory, plan=Plan.load(tmp_path / "plan.json"))


def test_a_recipe_without_units_of_several_refuses_a_plan_that_has_them(directory, plan):
    other = plan.model_copy(update={"recipe": load_recipe("slimrank", ["form=pivoted"])})
    with pytest.raises(UsageError, match="factorises every linear alone: set unit to null"):
        compress(directory, plan=other)


def test_only_an_allocator_that_chooses_may_have_a_form_of_several_linears():
    with pytest.raises(
        UsageError, match=r"pivoted may factorise several linears together, which allocate uniform cannot choose"
    ):
        load_recipe("slimrank", ["allocate=uniform"])
