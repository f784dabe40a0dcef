"""A budget of bytes from the call to the file."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from slimrank import Plan, compress
from slimrank.errors import UsageError
from slimrank.evaluate import weight_bytes
from slimrank.forms import Embedding, compressed_layers
from slimrank.report.run import run_page

FEW = {"samples": 8, "window": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("size") / "small"
    return compress("demo", size="2.6MB", out=out, **FEW), out


def test_the_file_takes_what_was_planned_never_more_than_was_allowed(made):
    result, out = made
    size = result.plan.size
    assert weight_bytes(out) == size.used <= 2_600_000 < 1.002 * size.used
    assert size.dense == 10_809_760 and size.bits == pytest.approx(8 * size.used / 5_401_856)
    written = Plan.load(out / "slimrank" / "plan.json")
    assert sum(linear.bytes for linear in written.linears.values()) < size.used
    for name, linear in written.linears.items():
        assert linear.layer is None or linear.layer.get("bits") == linear.bits, name
    assert (
        written.ends in ({"model.embed_tokens": 8}, {"model.embed_tokens": 4}) and "refine" in written.recipe.to_yaml()
    )


def test_it_loads_as_planned_and_loses_about_what_was_predicted(made):
    result, out = made
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    layers = compressed_layers(model)
    assert layers["model.embed_tokens"]["form"] == "embedding"
    assert isinstance(model.get_input_embeddings(), Embedding)
    planned = {name for name, linear in result.plan.linears.items() if linear.bits or linear.rank is not None}
    assert layers.keys() - {"model.embed_tokens"} == planned
    ids = torch.arange(40)[None]
    torch.testing.assert_close(model(ids).logits, result.model(ids).logits)
    assert 0.3 < result.held_out.divergence / result.plan.predicted < 4


def test_the_report_shows_bits_and_sizes(made):
    pytest.importorskip("altair")
    page = run_page(made[1])
    assert 'id="map-bits"' in page and 'id="sizes-chart"' in page and "--size 2600000" in page


@pytest.mark.slow
def test_an_edited_plan_is_applied_and_one_over_its_bytes_refused(made, tmp_path):
    plan = made[0].plan
    name, linear = next((n, one) for n, one in plan.linears.items() if one.bits == 4 and one.rank is None)
    smaller = linear.model_copy(update={"rank": 16, "form": "low_rank"})
    edited = plan.model_copy(update={"linears": {**plan.linears, name: smaller}})
    applied = compress("demo", plan=edited, out=tmp_path / "edited").plan
    assert applied.linears[name].layer == {"form": "low_rank", "rank": 16, "bits": 4, "group": linear.group}
    assert applied.size.used == weight_bytes(tmp_path / "edited") < plan.size.used
    wider = {n: one.model_copy(update={"rank": None, "bits": None, "group": None}) for n, one in plan.linears.items()}
    with pytest.raises(UsageError, match=r"bytes and its size\.allowed is 2600000"):
        compress("demo", plan=plan.model_copy(update={"linears": wider}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.8, "size": 10**6}, "--keep and --size are both budgets"),
        ({"bits": 4.0, "size": 10**6}, "--size and --bits are both budgets"),
        ({"bits": 0.0}, "--bits 0.0 must be above 0"),
        ({"size": "much"}, "--size 'much' is not a size"),
        ({"size": 0}, "--size 0 must be above 0"),
        (
            {"size": 100_000},
            r"^The smallest checkpoint that .* has \d+ bytes, and 100000 are allowed",
        ),
        ({"size": 10**6, "recipe": "svd-llm"}, "allocates by uniform, which spends parameters and chooses no bits"),
        ({"size": 10**6, "settings": ["refine=[anchored, distill]"]}, "refine.distill can't train rounded layers"),
    ],
)
def test_invalid_budgets_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        compress("demo", **FEW, **options)
