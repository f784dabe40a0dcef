"""Linears that are factorised as one, from the spectra to the checkpoint."""

import json

import pytest
import torch
from joined import joined
from safetensors.torch import load_file
from sessions import session
from transformers import AutoModelForCausalLM

from slimrank import compress
from slimrank.allocate import Problem
from slimrank.allocate.prices import measure, rank_joined
from slimrank.errors import UsageError
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.forms import Joint, compressed_layers
from slimrank.metric.two_sided import TwoSided
from slimrank.metric.whitened import Whitened
from slimrank.numerics.grams import Blocks, Grams
from slimrank.plan import Plan
from slimrank.recipe import load_recipe
from slimrank.refine.anchored import Anchored
from slimrank.run.pipeline import decompose_all, factorize, make_plan
from slimrank.serve.export.dense import multiplied_out
from slimrank.spectrum.decomposition import curve, decompose

BLOCK = "model.layers.0"
GROUP = tuple(f"{BLOCK}.self_attn.{name}_proj" for name in "qkv")
PLAIN = "refine=[]"


def ready(model, metric=None):
    """A session whose form joins, with the spectra of its groups."""
    metric = metric or TwoSided(shrink=0.3)
    made = session(model, metric=metric, labels="text" if metric.gradients else None)
    made.form = PivotedFactorizer(joint=True)
    decompose_all(made)
    return made


def weighed(made):
    """Of the group: (L_i^T W_i R) on each other, and the two roots."""
    sites = [made.site(name) for name in GROUP]
    right = torch.linalg.cholesky(made.metric.grams(sites[0]).right)
    lefts = [torch.linalg.cholesky(made.metric.left_gram(site)) for site in sites]
    return torch.cat([left.T @ site.weight.double() @ right for left, site in zip(lefts, sites, strict=True)])


def test_groups_are_the_linears_of_one_module_with_one_input(tiny_llama):
    made = ready(tiny_llama())
    assert made.groups[:2] == (GROUP, tuple(f"{BLOCK}.mlp.{name}_proj" for name in ("gate", "up")))
    assert len(made.groups) == 4
    made.form = PivotedFactorizer()
    assert made.groups == ()


def test_a_groups_spectrum_is_that_of_the_weighed_weights_on_each_other(tiny_llama):
    made = ready(tiny_llama())
    torch.testing.assert_close(made.curves[GROUP].values, torch.linalg.svdvals(weighed(made)), rtol=1e-6, atol=1e-9)
    assert made.joint_spectra()[GROUP].shape == (64, 32)


@pytest.mark.parametrize("bases", [True, False])
@pytest.mark.parametrize("route", ["projector", "cholesky"])
def test_a_block_diagonal_gram_is_its_blocks(bases, route):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(20, 9, generator=generator), torch.randn(9, 40, generator=generator).double()
    lefts = [g @ g.T for g in (torch.randn(n, 2 * n, generator=generator).double() for n in (7, 13))]
    blocks, whole = Grams(Blocks((7, 13), lefts.__getitem__), x @ x.T), Grams(torch.block_diag(*lefts), x @ x.T)
    for rank in (1, 4, 9):
        ours, theirs = (decompose(weight, grams, route, rank).cut(rank) for grams in (blocks, whole))
        torch.testing.assert_close(ours[0] @ ours[1], theirs[0] @ theirs[1], rtol=1e-8, atol=1e-8)
    held_out = Grams(right=x[:, :20] @ x[:, :20].T)
    ours, theirs = (curve(weight, grams, held_out, route, bases=bases) for grams in (blocks, whole))
    torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(ours.measured, theirs.measured, rtol=1e-4, atol=1e-6)


def test_what_is_built_loses_what_the_plan_predicts(tiny_llama):
    made = ready(tiny_llama())
    plan = joined(make_plan(made, load_recipe("slimrank", [PLAIN])), 9)
    built = factorize(made, plan)
    layers = {name: made.decoder.model.get_submodule(name) for name in GROUP}
    assert all(isinstance(layer, Joint) for layer in layers.values())
    sites = [made.site(name) for name in GROUP]
    right = made.metric.grams(sites[0]).right
    errors = [site.weight.double() - layers[site.name].dense_weight() for site in sites]
    lost = sum((e.T @ made.metric.left_gram(s) @ e * right).sum().item() for e, s in zip(errors, sites, strict=True))
    best = torch.linalg.svdvals(weighed(made))[9:].square().sum().item()
    assert lost == pytest.approx(best, rel=1e-4)
    assert built.linears[GROUP[0]].loss == pytest.approx(best, rel=1e-6)
    assert [built.linears[name].loss for name in GROUP[1:]] == [0, 0]
    whole = weighed(made).square().sum().item()
    assert built.linears[GROUP[2]].relative == pytest.approx((best / whole) ** 0.5, rel=1e-6)
    assert all(built.linears[name].measured == built.linears[GROUP[0]].measured for name in GROUP)
    stored = sum(t.numel() for name in GROUP for t in layers[name].state_dict().values())
    assert stored == sum(built.linears[name].parameters for name in GROUP) == 9 * (64 + 32 - 9) + 4 + 2 + 2


def test_anchored_on_an_uncompressed_prefix_is_the_plain_cut(tiny_llama):
    made = ready(tiny_llama(), Whitened())
    weight, grams = made.stack(GROUP)
    left, right = decompose(weight, grams).cut(8)
    made.joint = (GROUP,)
    Anchored(mix=0.0, shrink=0.0).refine(made, dict.fromkeys(made.dense) | dict.fromkeys(GROUP, 8))
    found = torch.cat([made.decoder.model.get_submodule(name).dense_weight() for name in GROUP])
    torch.testing.assert_close(found, left @ right, atol=2e-3, rtol=2e-3)


def test_the_price_of_a_group_is_corrected_by_the_divergence_of_its_joint_cut(tiny_llama):
    made = ready(tiny_llama())
    problem = Problem(0.6, made.spectrum(), made.form, made, made.joint_spectra())
    ranks = dict.fromkeys(made.dense, 5)
    losses = {group: spectrum.losses().numpy() for group, spectrum in problem.joint.items()}
    readings = measure(problem, losses, ranks, points=2, windows=8)
    shapes = [problem.spectrum.linears[name].shape for name in GROUP]
    top = rank_joined(problem, GROUP, ranks)
    budget = sum(made.form.cost(shape, 5) for shape in shapes)
    costs = [sum(made.form.joint_costs(shapes, rank)) for rank in (top, top + 1)]
    assert costs[0] <= budget < costs[1]
    assert readings[GROUP][0] == pytest.approx(losses[GROUP][[round(top / 2), top]])
    model, ids = made.decoder.model, made.windows.calibration[:8]
    weight, grams = made.stack(GROUP)
    left, right = decompose(weight, grams).cut(top)
    with torch.no_grad():
        dense = model(ids).logits.log_softmax(-1)
        for name, part in zip(GROUP, (left @ right).split([m for m, _ in shapes]), strict=True):
            model.get_submodule(name).weight.copy_(part)
        changed = model(ids).logits.log_softmax(-1)
    expected = (dense.exp() * (dense - changed)).sum(-1).mean().item()
    assert readings[GROUP][1][1] == pytest.approx(expected, rel=1e-3)


def test_measured_prices_and_joining_go_together(tiny_llama):
    made = ready(tiny_llama())
    plan = make_plan(made, load_recipe("slimrank", ["allocate.calibrate=2", "allocate.windows=8", PLAIN]))
    assert "linears and groups of them: Spearman" in plan.notes[0] and plan.budget.used <= plan.budget.allowed


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
    assert f"{GROUP[0]}.pivots.weight" in stored and f"{GROUP[1]}.pivots.weight" not in stored
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
    assert again.plan.linears == first.plan.linears and compressed_layers(again.model)[GROUP[1]]["leader"] == "q_proj"


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
        (lambda q, k: k.update(rank=3), r"q_proj.*k_proj.*v_proj and gives them several ranks"),
        (lambda q, k: (q.update(rank=33), k.update(rank=33)), r"rank 33: choose 1 to 32"),
        (
            lambda q, k: q.update(joint=None, form="pivoted"),
            r"joins .*k_proj to .*q_proj, which isn't joined to itself",
        ),
        (lambda q, k: q.update(rank=None), r"k_proj to .*q_proj, which isn't joined to itself"),
        (lambda q, k: k.update(joint="x"), r"k_proj to x, which isn't joined to itself and others"),
        (lambda q, k: k.update(joint=None), r"the form 'joint', and its recipe builds 'pivoted'"),
        (lambda q, k: k.update(joint=None, form="pivoted"), r"which can't share their pivots: set their joint to null"),
    ],
)
def test_a_plan_that_cannot_be_joined_is_refused(directory, plan, tmp_path, edit, message):
    raw = json.loads(plan.to_json())
    edit(*(raw["linears"][name] for name in GROUP[:2]))
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=message):
        compress(directory, plan=Plan.load(tmp_path / "plan.json"))


def test_a_recipe_that_does_not_join_refuses_a_plan_that_does(directory, plan):
    other = plan.model_copy(update={"recipe": load_recipe("slimrank", ["form=pivoted"])})
    with pytest.raises(UsageError, match="its recipe's form doesn't: set joint to null"):
        compress(directory, plan=other)


def test_only_an_allocator_that_chooses_may_be_asked_to_join():
    with pytest.raises(UsageError, match=r"form\.joint needs an allocator that chooses what to join"):
        load_recipe("slimrank", ["allocate=uniform"])
