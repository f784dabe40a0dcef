"""Methods from outside the package go the whole way: compress to a folder, killed, resumed, loaded, exported, split."""

import kills
import own_methods
import pytest
import torch
from own_methods import RECIPE, Scaled
from transformers import AutoModelForCausalLM

from slimrank import compress
from slimrank.plan import Plan
from slimrank.serve.export import export
from slimrank.serve.shards import FusedParts


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The lines in the tables."""
    for table, name, kind in own_methods.TABLES:
        monkeypatch.setitem(table, name, kind)


@pytest.fixture
def options(tiny_llama, tiny_tokenizer, make_text, tmp_path):
    tiny_llama(num_hidden_layers=3).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(make_text(4000))
    (tmp_path / "own.yaml").write_text(RECIPE)
    read = {"calibration": str(tmp_path / "text.txt"), "samples": 12, "window": 32, "keep": 0.6}
    return {"model": str(tmp_path / "dense"), "recipe": str(tmp_path / "own.yaml"), **read}


def test_each_of_them_did_its_part(options):
    result = compress(options.pop("model"), options.pop("recipe"), **options)
    plan = result.plan
    assert {linear.form for linear in plan.linears.values()} == {"scaled"}
    assert plan.notes[-1] == "21 layers have their dense lengths." and "Later blocks keep more." in plan.notes
    assert plan.budget.used <= plan.budget.allowed
    ranks = [plan.linears[f"model.layers.{index}.mlp.up_proj"].rank for index in range(3)]
    assert ranks[0] < ranks[1] < ranks[2]
    layer = result.model.model.layers[1].mlp.up_proj
    assert isinstance(layer, Scaled) and layer.rank == ranks[1]
    assert all(0 < linear.relative < linear.measured + 1 for linear in plan.linears.values())


def test_killed_and_resumed_it_is_the_same_to_the_byte_as_in_memory(options, tmp_path):
    compress(
        options["model"], options["recipe"], **{k: options[k] for k in ("calibration", "samples", "window")}, keep=0.6
    ).save(tmp_path / "whole")
    run = options | {"own_methods": True, "out": str(tmp_path / "out")}
    steps = kills.run(run | {"out": str(tmp_path / "again")}).steps
    for _ in range(3):
        assert kills.run(run, steps // 5).steps is None
    assert kills.run(run).steps < steps
    assert kills.contents(tmp_path / "out") == kills.contents(tmp_path / "whole")


@torch.no_grad()
def test_its_checkpoint_loads_saves_exports_and_is_split_over_devices(options, tmp_path):
    result = compress(options.pop("model"), options.pop("recipe"), **options)
    result.save(tmp_path / "small")
    assert Plan.load(tmp_path / "small/slimrank/plan.json") == result.plan
    tokens, loaded = torch.arange(3, 23)[None], AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    logits = loaded(tokens).logits
    torch.testing.assert_close(logits, result.model(tokens).logits, rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()(tokens).logits, logits)
    export(str(tmp_path / "small"), "dense", tmp_path / "dense-again")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense-again").eval()
    torch.testing.assert_close(dense(tokens).logits, logits, rtol=1e-4, atol=1e-4)
    layer = loaded.model.layers[0].mlp.gate_proj
    x, columns = torch.randn(2, 5, layer.in_features), torch.arange(layer.in_features)
    halves = torch.arange(layer.out_features).chunk(2)
    parts = [FusedParts({"gate": layer.shard(rows, columns)}, "cpu", torch.float32)(x) for rows in halves]
    torch.testing.assert_close(torch.cat(parts, -1), layer(x), rtol=1e-5, atol=1e-5)
