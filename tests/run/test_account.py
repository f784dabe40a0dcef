import json

import pytest
import torch
from safetensors.torch import load_file

from slimrank import compress
from slimrank.checkpoint.account import Account
from slimrank.errors import SlimrankError, UsageError
from slimrank.run.curves import points_of
from slimrank.spectrum.curve import Curve


def test_a_curve_is_the_spectrum_at_some_ranks():
    values = torch.linspace(5, 0.1, 100, dtype=torch.float64)
    curve = points_of(Curve(values), cut=37, points=12)
    assert {1, 37, 100} <= set(curve.ranks) and len(curve.ranks) <= 12
    for rank, singular, error in zip(curve.ranks, curve.singular, curve.error, strict=True):
        assert singular == pytest.approx((values[rank - 1] / values[0]).item(), rel=1e-3)
        assert error == pytest.approx((values[rank:].square().sum() / values.square().sum()).sqrt().item(), rel=1e-3)


def test_a_short_spectrum_is_whole():
    curve = points_of(Curve(torch.tensor([2.0, 1.0, 0.0])), cut=None, points=40)
    assert curve.ranks == [1, 2, 3] and curve.singular == [1, 0.5, 0] and curve.error[2] == 0


def test_compress_leaves_an_account_in_the_checkpoint(tiny_llama, tiny_tokenizer, make_text, tmp_path):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(make_text(2000))
    text = str(tmp_path / "text.txt")
    result = compress(str(tmp_path / "dense"), "svd-llm", keep=0.6, calibration=text, samples=8, window=32)
    result.save(tmp_path / "small")
    account = Account.load(tmp_path / "small")
    assert account.curves.keys() == result.plan.linears.keys()
    for name, linear in result.plan.linears.items():
        curve = account.curves[name]
        assert curve.error[curve.ranks.index(linear.rank)] == pytest.approx(linear.relative, rel=1e-3)
    assert (account.stored, account.computed, account.device) == ("bfloat16", "float32", "cpu")
    assert account.dense_bytes == (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert account.parameters["compressed"] < account.parameters["dense"]
    assert {"calibrate", "decompose"} <= account.seconds.keys() and "torch" in account.versions


def test_an_account_that_cannot_be_read_says_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"account\.json is missing.*compress the model again"):
        Account.load(tmp_path)
    (tmp_path / "slimrank").mkdir()
    (tmp_path / "slimrank" / "account.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(UsageError, match=r"account\.json is damaged"):
        Account.load(tmp_path)


@pytest.mark.parametrize("out", [None, "out"])
def test_a_tied_head_is_counted_once_after_the_temperature(tiny_llama, tiny_tokenizer, place, out):
    tiny_llama(tie_word_embeddings=True).save_pretrained("tied")
    tiny_tokenizer.save_pretrained("tied")
    options = {"keep": 0.8, "calibration": "text.txt", "samples": 8, "window": 32, "settings": ["refine=[temperature]"]}
    result = compress("tied", "svd", **options, out=out)
    if out is None:
        result.save("out")
    numbers = [sum(t.numel() for t in load_file(place / f / "model.safetensors").values()) for f in ("tied", "out")]
    assert list(result.parameters) == numbers and numbers[1] < numbers[0]
    assert f"({numbers[1] / numbers[0]:.1%})" in result.summary()["whole model"]


def test_a_plan_holds_no_nan(place):
    plan = compress("dense", "svd", keep=0.8, calibration="text.txt", samples=8, window=32, plan_only=True).plan
    name = next(iter(plan.linears))
    plan = plan.with_linears({**plan.linears, name: plan.linears[name].model_copy(update={"loss": float("nan")})})
    with pytest.raises(SlimrankError, match=r"The plan has nan at linears\..*loss"):
        plan.to_json()
