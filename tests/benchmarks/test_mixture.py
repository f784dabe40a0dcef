import json

import pytest
import torch
from architectures import build, mixtures

from slimrank.forms.experts import layout_of
from slimrank.model.load import load

pytestmark = pytest.mark.skipif(
    not any(layout_of(module) for module in build(mixtures()["Qwen3Moe"]).modules()),
    reason="transformers 4 has lists of linears",
)


@pytest.fixture
def model():
    config = mixtures()["Qwen3Moe"]
    return build(type(config)(**config.to_dict() | {"vocab_size": 320}))


@pytest.fixture
def ids():
    return torch.randint(3, 320, (6, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def masked(router, dropped):
    """The router's own formula, the dropped experts' scores being minus infinity."""

    def forward(hidden):
        scores = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
        scores[:, dropped] = -torch.inf
        value, index = scores.float().softmax(-1).topk(router.top_k, dim=-1)
        return scores, value / value.sum(-1, keepdim=True) if router.norm_topk_prob else value, index

    return forward


def test_a_model_without_some_experts_is_the_one_whose_router_never_chooses_them(script, model, ids):
    dropping = script("dropping")
    counts = dropping.routed_tokens(model, ids)
    assert all(int(own.sum()) == ids.numel() * 2 for own in counts.values())
    left = {name: sorted(own.argsort(descending=True)[:3].tolist()) for name, own in counts.items()}
    for name, _, router in dropping.mixtures(model):
        router.forward = masked(router, [e for e in range(4) if e not in left[name]])
    expected = logits(model, ids)
    for _, _, router in dropping.mixtures(model):
        del router.forward
    before = logits(model, ids)
    dropping.drop(model, left)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)


def test_those_of_the_fewest_tokens_go_and_each_layer_keeps_as_many_as_a_token_chooses(script):
    left_over = script("dropping").left_over
    counts = {"a": torch.tensor([9, 1, 8, 2]), "b": torch.tensor([30, 20, 5, 50])}
    assert left_over(counts, 2, 3, by_layer=False) == {"a": [0, 2], "b": [0, 1, 3]}
    assert left_over(counts, 3, 2, by_layer=False) == {"a": [0, 2, 3], "b": [0, 1, 3]}
    assert left_over(counts, 2, 3, by_layer=True) == {"a": [0, 2], "b": [0, 3]}
    with pytest.raises(ValueError, match="cannot be dropped with 3 left"):
        left_over(counts, 3, 3, by_layer=False)


@pytest.mark.parametrize("by_layer", [False, True])
def test_the_share_that_stays_is_at_most_what_was_asked(script, model, tiny_tokenizer, tmp_path, ids, by_layer):
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    linears = script("mixture").linear_parameters
    loaded = load(str(tmp_path / "model"))
    dense = linears(loaded)
    left = script("dropping").drop_least_used(loaded, ids, 0.8, by_layer=by_layer)
    assert linears(loaded) <= 0.8 * dense
    assert len({len(own) for own in left.values()}) == 1 or not by_layer


def test_every_recipe_and_way_of_dropping_has_a_row(run, model, tiny_tokenizer, make_text, tmp_path):
    model.save_pretrained(tmp_path / "tiny/model")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny/model")
    (tmp_path / "text.txt").write_text(make_text(3000))
    text = str(tmp_path / "text.txt")
    out = tmp_path / "rows.json"
    options = ["--recipes", "svd-llm", "--keeps", "0.8", "--samples", "4", "--window", "32", "--max-windows", "4"]
    run("mixture", str(tmp_path / "tiny/model"), *options, "--calibration", text, "--text", text, "--out", str(out))
    found = json.loads(out.read_text())
    rows = {row["recipe"]: row for row in found["rows"]}
    assert len(rows) == 4 and found["settings"]["model"] == "tiny"
    assert all(row["kept"] <= 0.8 for name, row in rows.items() if name != "dense")
    assert rows["dense"]["texts"]["text.txt"]["kl"] == 0
    assert all(row["texts"]["text.txt"]["kl"] > 0 for name, row in rows.items() if name != "dense")
