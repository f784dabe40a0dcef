"""Mixtures of experts from end to end."""

import json
import subprocess
import sys

import kills
import processes
import pytest
import torch
from architectures import build, mixtures
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slimrank import compress
from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate.models import linear_parameters
from slimrank.forms import Experts, compressed_layers
from slimrank.forms.experts import layout_of
from slimrank.model.compressible import Compressible
from slimrank.model.load import load
from slimrank.model.skeleton import in_parts
from slimrank.plan import Plan
from slimrank.recipe import load_recipe
from slimrank.run.estimate import shares_of
from slimrank.run.job import opened
from slimrank.run.quantize import quantize
from slimrank.runtime.memory import Limits
from slimrank.serve.export.dense import export_dense

COMMON = {"keep": 0.6, "samples": 8, "window": 32}
FAMILIES = mixtures()


def fuses() -> bool:
    """Whether this transformers fuses experts."""
    return any(layout_of(module) for module in build(FAMILIES["Qwen3Moe"]).modules())


pytestmark = pytest.mark.skipif(not fuses(), reason="transformers 4 has lists of linears")


@pytest.fixture
def made(tiny_tokenizer, make_text, tmp_path):
    """(family, changes) -> the folder of a dense model beside which text.txt lies."""

    def save(family, **changes):
        config = FAMILIES[family]
        config = type(config)(**config.to_dict() | {"vocab_size": 320} | changes)
        build(config).save_pretrained(tmp_path / "dense")
        tiny_tokenizer.save_pretrained(tmp_path / "dense")
        (tmp_path / "text.txt").write_text(make_text(3000))
        return tmp_path / "dense"

    return save


@pytest.fixture
def ids():
    return torch.randint(3, 320, (2, 24), generator=torch.Generator().manual_seed(0))


def run(dense, recipe="svd-llm", **options):
    return compress(str(dense), recipe, calibration=str(dense.parent / "text.txt"), **COMMON | options)


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def shapes(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)


@pytest.mark.parametrize("family", ["Mixtral", "GptOss", "Llama4Text"])
@pytest.mark.parametrize("recipe", ["svd-llm", "slimrank"])
def test_a_run_from_disk_is_the_run_in_memory_and_loads_to_the_bit(family, recipe, made, ids):
    dense = made(family)
    result = run(dense, recipe)
    result.save(dense.parent / "memory")
    run(dense, recipe, out=dense.parent / "disk")
    again, disk = (AutoModelForCausalLM.from_pretrained(dense.parent / name) for name in ("memory", "disk"))
    assert torch.equal(logits(again, ids), logits(result.model, ids))
    torch.testing.assert_close(logits(disk, ids), logits(again, ids), rtol=0, atol=1e-4)
    experts = [name for name in compressed_layers(again) if isinstance(again.get_submodule(name), Experts)]
    assert len(experts) == 2
    again.save_pretrained(dense.parent / "again")
    assert shapes(dense.parent / "again") == shapes(dense.parent / "memory")
    assert linear_parameters(load(str(dense.parent / "memory"))) == result.plan.budget.used
    assert again.generate(ids[:, :8], max_new_tokens=3, do_sample=False).shape == (2, 11)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_experts_stay_on_disk(family, made, ids):
    dense = made(family)
    found = in_parts(dense, torch.float32, torch.device("cpu"), 0)
    assert found is not None, "the tensors are found as they are named in the files"
    model, weights, _ = found
    expected = logits(load(str(dense)).model, ids)
    with weights.whole():
        torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5)


def sharing(dense, recipe, ranks):
    """A plan in which the experts of every block share the factors of `ranks`: side -> rank, alone where it is None."""
    plan = run(dense, recipe, settings=["allocate=nats", "form.shared=true"], plan_only=True).plan
    roles = list(dict.fromkeys(name.rpartition(".")[2] for name, one in plan.linears.items() if one.expert is not None))
    linears = dict(plan.linears)
    for name, one in plan.linears.items():
        if one.expert is None:
            continue
        side = ("input", "output")[roles.index(name.rpartition(".")[2])]
        place, _, role = name.rsplit(".", 2)
        alone = {"form": plan.recipe.form.name, "rank": 4, "unit": None}
        shared = {"form": f"shared_{side}", "rank": ranks[side], "unit": f"{place}.0.{role}"}
        linears[name] = one.model_copy(update=shared if ranks[side] else alone)
    return plan.model_copy(update={"linears": linears, "keep": 0.9, "notes": []})


@pytest.mark.parametrize("recipe", ["svd-llm", "slimrank"])
@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss"])
def test_experts_that_share_factors_are_built_saved_loaded_and_exported(family, recipe, made, ids):
    dense = made(family)
    plan = sharing(dense, recipe, {"input": 9, "output": 7})
    text = str(dense.parent / "text.txt")
    result = compress(str(dense), plan=plan, calibration=text)
    result.save(dense.parent / "memory")
    again = AutoModelForCausalLM.from_pretrained(dense.parent / "memory")
    assert torch.equal(logits(again, ids), logits(result.model, ids))
    assert linear_parameters(load(str(dense.parent / "memory"))) == result.plan.budget.used
    layer = next(module for module in again.modules() if isinstance(module, Experts))
    assert (layer.ups.side, layer.downs.side) == ("input", "output")
    compress(str(dense), plan=plan, calibration=text, out=dense.parent / "disk")
    disk = AutoModelForCausalLM.from_pretrained(dense.parent / "disk")
    torch.testing.assert_close(logits(disk, ids), logits(again, ids), rtol=0, atol=1e-4)
    export_dense(load(str(dense.parent / "disk")), dense.parent / "export")
    assert shapes(dense.parent / "export") == shapes(dense)
    found = logits(AutoModelForCausalLM.from_pretrained(dense.parent / "export"), ids)
    torch.testing.assert_close(found, logits(disk, ids), rtol=0, atol=1e-4)
    again.save_pretrained(dense.parent / "again")
    assert shapes(dense.parent / "again") == shapes(dense.parent / "memory")


def test_shared_factors_of_full_rank_are_more_than_the_dense_matrices_and_refused(made):
    dense = made("Qwen3Moe")
    plan = sharing(dense, "svd-llm", {"input": 32, "output": 32})
    linears = {
        name: one if one.expert is not None else one.model_copy(update={"form": "dense", "rank": None, "unit": None})
        for name, one in plan.linears.items()
    }
    plan = plan.model_copy(update={"linears": linears, "keep": 1.0})
    with pytest.raises(UsageError, match="lower some ranks or raise keep"):
        compress(str(dense), plan=plan, calibration=str(dense.parent / "text.txt"))


@pytest.fixture
def reading_alike(made):
    """A model all of whose experts read the same three directions of their inputs."""
    dense = made("Qwen3Moe")
    tensors = load_file(dense / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_proj.weight", "up_proj.weight"))]:
        common = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
        tensors[name] = torch.randn(len(tensors[name]), 3, generator=generator) @ common / 10
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    return dense


def test_a_shared_factor_is_a_candidate_of_the_sweep(reading_alike):
    dense = reading_alike
    result = run(dense, "slimrank", settings=["form.shared=true"], keep=0.5)
    ups = {name: one for name, one in result.plan.linears.items() if name.endswith("gate_up_proj")}
    assert {one.form for one in ups.values()} == {"shared_input"}
    assert all(one.rank <= 4 and one.relative < 1e-3 for one in ups.values())
    assert "Shared by all experts of a layer: one factor of" in " ".join(result.plan.notes)


def test_a_plan_cannot_share_what_its_recipe_does_not_and_must_share_among_all(made):
    dense = made("Qwen3Moe")
    plan, text = sharing(dense, "svd-llm", {"input": 5, "output": None}), str(dense.parent / "text.txt")
    form = plan.recipe.form.model_copy(update={"shared": False})
    other = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"form": form})})
    with pytest.raises(UsageError, match="factorises every linear alone: set unit to null"):
        compress(str(dense), plan=other, calibration=text)
    name = "model.layers.0.mlp.experts.2.gate_up_proj"
    alone = plan.linears[name].model_copy(update={"form": "low_rank", "unit": None})
    with pytest.raises(UsageError, match="set unit to null"):
        compress(str(dense), plan=plan.model_copy(update={"linears": plan.linears | {name: alone}}), calibration=text)


def test_plain_transformers_stops_and_the_dense_export_has_the_fused_layout(made, ids):
    dense = made("Mixtral")
    run(dense, filter=lambda name, module: "experts" in name, out=dense.parent / "only")
    code = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
    plain = subprocess.run([sys.executable, "-c", code, dense.parent / "only"], capture_output=True, text=True)
    assert plain.returncode and "mismatch" in plain.stderr
    loaded = load(str(dense.parent / "only"))
    export_dense(loaded, dense.parent / "export")
    assert shapes(dense.parent / "export") == shapes(dense)
    found = logits(AutoModelForCausalLM.from_pretrained(dense.parent / "export"), ids)
    torch.testing.assert_close(found, logits(loaded.model, ids), rtol=0, atol=1e-5)


def test_it_loads_in_a_fresh_process_and_lora_trains_beside_it(made, ids):
    dense = made("Qwen3Moe")
    run(dense, out=dense.parent / "out")
    code = (
        "import sys, torch, slimrank; from transformers import AutoModelForCausalLM as A; "
        "A.from_pretrained(sys.argv[1], dtype=torch.bfloat16)"
    )
    fresh = subprocess.run([sys.executable, "-c", code, dense.parent / "out"], capture_output=True, text=True)
    assert not fresh.returncode, fresh.stderr[-2000:]
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(dense.parent / "out")
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    tuned(input_ids=ids, labels=ids).loss.backward()
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any("experts" in name for name in trained)


def test_a_tensor_of_one_expert_that_is_missing_is_named(made):
    dense = made("Mixtral")
    tensors = load_file(dense / "model.safetensors")
    lost = next(key for key in tensors if "experts.2." in key)
    save_file({key: t for key, t in tensors.items() if key != lost}, dense / "model.safetensors", {"format": "pt"})
    with pytest.raises(SlimrankError, match=r"3 tensors of 4 experts for model\.layers\.0\.mlp\.experts"):
        run(dense, out=dense.parent / "out")
    with pytest.raises(SlimrankError, match="cannot be loaded"):
        run(dense)


def test_experts_that_nobody_needs_get_rank_0_and_are_named(made, ids):
    dense = made("Qwen3Moe")
    model = AutoModelForCausalLM.from_pretrained(dense)
    with torch.no_grad():  # the last two experts of each token are never chosen
        for block in model.model.layers:
            block.mlp.gate.weight.zero_()
    model.save_pretrained(dense)
    result = run(dense, "slimrank", keep=0.3)
    zero = [name for name, linear in result.plan.linears.items() if linear.rank == 0]
    assert zero
    assert all("experts" in name for name in zero)
    notes = " ".join(result.plan.notes)
    assert "No calibration token was routed to" in notes
    assert "Rank 0" in notes
    result.save(dense.parent / "out")
    again = AutoModelForCausalLM.from_pretrained(dense.parent / "out")
    assert torch.equal(logits(again, ids), logits(result.model, ids))
    layer = again.model.layers[0].mlp.experts
    assert 0 in [entry["rank"] for entry in layer.ups.entries + layer.downs.entries if "rank" in entry]
    plan = result.plan.model_copy(update={"notes": []})
    applied = compress(str(dense), plan=plan, calibration=str(dense.parent / "text.txt"))
    assert torch.equal(logits(applied.model, ids), logits(result.model, ids))


@pytest.mark.parametrize("recipe", ["svd-llm", "slimrank"])
@pytest.mark.parametrize("disk", [False, True])
def test_all_tokens_may_go_to_one_expert(recipe, disk, made, ids):
    dense = made("Qwen3Moe", num_experts_per_tok=1)
    model = AutoModelForCausalLM.from_pretrained(dense)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.gate.weight.zero_()
    model.save_pretrained(dense)
    result = run(dense, recipe, keep=0.5, **({"out": dense.parent / "out"} if disk else {}))
    for index in range(2):
        counts = [one.routed for name, one in result.plan.linears.items() if f"{index}.mlp.experts" in name]
        assert sorted(counts) == [0] * 6 + [8 * 32] * 2
    assert "No calibration token was routed to 6 of mlp.experts.*.gate_up_proj of 2 blocks" in " ".join(
        result.plan.notes
    )
    assert logits(result.model, ids).isfinite().all()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), r"model\.layers\.1\.mlp\.gate\.weight holds NaN or Inf"),
        (3e38, "gives NaN or Inf on a short text"),  # finite weights, whose products are not
    ],
)
def test_a_router_that_returns_not_a_number_is_refused(value, said, made):
    dense = made("Qwen3Moe")
    model = AutoModelForCausalLM.from_pretrained(dense)
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight.fill_(value)
    model.save_pretrained(dense)
    for place in ({}, {"out": dense.parent / "out"}):
        with pytest.raises(SlimrankError, match=said):
            run(dense, "slimrank", **place)


@pytest.mark.parametrize("bits", [8, 4])
def test_experts_of_few_bits_are_loaded_and_those_of_a_shared_factor_too(bits, made, ids):
    pytest.importorskip("torchao")
    dense = made("Qwen3Moe")
    plan = sharing(dense, "svd-llm", {"input": 9, "output": None})
    compress(str(dense), plan=plan, calibration=str(dense.parent / "text.txt"), out=dense.parent / "floats")
    loaded = load(str(dense.parent / "floats"))
    expected = logits(loaded.model, ids)
    quantize(loaded, dense.parent / "few", bits=bits)
    found = logits(AutoModelForCausalLM.from_pretrained(dense.parent / "few"), ids)
    assert 0 < (found - expected).abs().max() < (0.1 if bits == 8 else 1.0) * expected.std()


def test_the_estimate_counts_the_tokens_that_experts_get(made):
    _, decoder = opened(
        str(made("Qwen3Moe")), device="cpu", dtype="float32", limits=Limits.of(None, "cpu"), from_disk=False
    )
    model = Compressible.of(decoder)
    shares = {
        name: shares_of(model, load_recipe("svd-llm", [f"experts={key}"]))
        for name, key in (("k", "routed"), ("all", "all"))
    }
    assert {name: share for name, share in shares["k"].items() if share != 1} == dict.fromkeys(
        [name for name in model.linears if "experts" in name], 0.5
    )
    assert set(shares["all"].values()) == {1.0}


@pytest.mark.parametrize("recipe", ["svd-llm", "slimrank"])
def test_a_keep_that_leaves_no_rank_is_refused(recipe, made):
    with pytest.raises(UsageError, match=r"rank 1 in every linear needs \d+"):
        run(made("Qwen3Moe"), recipe, keep=0.01)


def test_a_keep_that_leaves_experts_less_than_rank_1_takes_them_out(made, ids):
    result = run(made("Qwen3Moe"), "slimrank", keep=0.08)
    ranks = [one.rank for one in result.plan.linears.values() if one.expert is not None]
    assert ranks.count(0) >= 8
    assert result.plan.budget.used <= result.plan.budget.allowed
    assert "Rank 0, which the budget needs more elsewhere" in " ".join(result.plan.notes)
    assert logits(result.model, ids).isfinite().all()


@pytest.mark.parametrize("recipe", ["svd-llm-v2", "dipsvd", "fwsvd", "cpsvd", "svd-llm-update", "duo-svd"])
def test_recipes_of_papers_take_experts(recipe, made, ids):
    dense = made("Qwen3Moe")
    settings = ["allocate.windows=2", "allocate.grid=[0.3, 0.6, 1.0]"] if recipe == "duo-svd" else []
    result = run(dense, recipe, settings=settings)
    assert result.plan.budget.used <= result.plan.budget.allowed
    linears = {name for name, linear in result.plan.linears.items() if "experts" in name and linear.rank is not None}
    assert linears
    assert logits(result.model, ids).isfinite().all()


def test_all_tokens_to_all_experts_is_an_option_of_the_recipe(made, ids):
    dense = made("Qwen3Moe")
    routed, every = (run(dense, settings=[f"experts={choice}"]) for choice in ("routed", "all"))
    assert routed.plan.recipe.experts == "routed"
    assert not torch.equal(logits(routed.model, ids), logits(every.model, ids))


def test_a_model_in_memory_is_itself_again_after_a_plan_or_an_error(made):
    loaded = load(str(made("Qwen3Moe")))
    before = dict(loaded.model.named_modules())
    text = str(loaded.directory.parent / "text.txt")
    compress(loaded, "svd-llm", calibration=text, plan_only=True, **COMMON)
    assert dict(loaded.model.named_modules()) == before
    with pytest.raises(UsageError):
        compress(loaded, "svd-llm", calibration=text, **COMMON | {"keep": 0.001})
    assert dict(loaded.model.named_modules()) == before


def test_killed_and_resumed_is_the_same_to_the_byte(made):
    dense = made("Mixtral")
    options = {"model": str(dense), "recipe": "slimrank", "calibration": str(dense.parent / "text.txt"), **COMMON}
    whole, out = dense.parent / "whole", dense.parent / "out"
    steps = kills.run({**options, "out": str(whole)}).steps
    for _ in range(2):
        assert kills.run({**options, "out": str(out)}, steps // 3).steps is None
    assert not kills.run({**options, "out": str(out)}).error
    assert kills.contents(out) == kills.contents(whole)


def test_killed_and_resumed_with_shared_factors_is_the_same_to_the_byte(reading_alike):
    dense, settings = reading_alike, ["form.shared=true"]
    options = {"model": str(dense), "recipe": "slimrank", "calibration": str(dense.parent / "text.txt"), **COMMON}
    whole, out = dense.parent / "whole", dense.parent / "out"
    steps = kills.run({**options, "settings": settings, "out": str(whole)}).steps
    assert kills.run({**options, "settings": settings, "out": str(out)}, steps // 2).steps is None
    assert not kills.run({**options, "settings": settings, "out": str(out)}).error
    assert kills.contents(out) == kills.contents(whole)
    assert "shared_input" in (out / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_two_processes_give_what_one_gives(shared, made, ids):
    dense = made("Qwen3Moe")
    text = ["--calibration", str(dense.parent / "text.txt")]
    command = ["compress", str(dense), *text, "--samples", "16", "--window", "64", "--keep", "0.6"]
    if shared:
        (dense.parent / "plan.json").write_text(sharing(dense, "slimrank", {"input": 9, "output": 7}).to_json())
        command = ["compress", str(dense), *text, "--plan", str(dense.parent / "plan.json")]
        plan = Plan.load(dense.parent / "plan.json")
        compress(str(dense), plan=plan, calibration=text[1], out=dense.parent / "one")
    else:
        run(dense, "slimrank", samples=16, window=64, out=dense.parent / "one")
    several = processes.torchrun(dense.parent, *command, "--out", str(dense.parent / "two"))
    assert several.returncode == 0, several.stderr[-3000:]
    one, two = (AutoModelForCausalLM.from_pretrained(dense.parent / name) for name in ("one", "two"))
    expected = logits(one, ids)
    torch.testing.assert_close(logits(two, ids), expected, rtol=0, atol=1e-3 * expected.std().item())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_almost_all_parameters_are_in_the_plan(family, made, ids):
    dense = made(family)
    result = run(dense, out=dense.parent / "out")
    model = AutoModelForCausalLM.from_pretrained(dense)
    routers = ("gate.weight", "router.weight")
    embeddings = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()}
    counted = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.ndim > 1 and id(p) not in embeddings and not name.endswith(routers)
    )
    assert result.plan.budget.dense >= 0.95 * counted
    config = json.loads((dense.parent / "out/config.json").read_text())
    assert any(entry["form"] == "experts" for entry in config["quantization_config"]["layers"].values())
