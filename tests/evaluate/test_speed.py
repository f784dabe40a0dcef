import json

import pytest
import torch
from architectures import ARCHITECTURES, gemma3_with_vision, llama
from lossless import compress

from slimrank.cli.commands.bench import parse_batches
from slimrank.errors import UsageError
from slimrank.evaluate.decoding import decoder, prefill, prompt
from slimrank.evaluate.memory import peak_of
from slimrank.evaluate.roofline import Limits, measure_limits, reason
from slimrank.evaluate.speed import Asked, Bench, Speed, bench, read_numbers

LIMITS = Limits(bandwidth=1e9, operations=1e11, width=2)


def test_measures_every_model_and_batch():
    models = {"dense": llama(), "small": compress(llama(), "low_rank", "pivoted")}
    found = bench(models, Asked(tokens=8, batches=(1, 3), steps=2, rounds=2), {"device": "cpu"})
    record = json.loads(found.to_json())
    assert [model["name"] for model in record["models"]] == ["dense", "small"]
    asked = {"tokens": 8, "batches": [1, 3], "steps": 2, "rounds": 2, "compiled": False}
    assert record["settings"] == asked | {"device": "cpu"}
    for speed in found.speeds:
        assert set(speed.decode) == {1, 3} and min(speed.prefill, speed.first, *speed.decode.values()) > 0
        assert speed.seconds(8)["decode 3"] == (3, speed.decode[3])
    assert record["notes"] == found.notes()


def test_more_tokens_than_the_context_holds_are_refused():
    model = llama(max_position_embeddings=13)
    with pytest.raises(UsageError, match=r"--tokens 8 .* 14 tokens, beyond the context of tiny, 13: ask for fewer\."):
        bench({"tiny": model}, Asked(tokens=8, batches=(1,), steps=2, rounds=2), {})


@torch.no_grad()
def test_a_decoding_step_reads_one_token_after_the_prompt():
    model, lengths = llama(), []
    step = decoder(model, tokens=8, batch=3, steps=2)
    model.register_forward_hook(lambda module, args, kwargs, output: lengths.append(kwargs), with_kwargs=True)
    step()
    step()
    assert [kwargs["past_key_values"].get_seq_length() for kwargs in lengths] == [10, 10]  # one cache, two steps
    assert lengths[0]["past_key_values"].layers[0].keys.shape[0] == 3
    cache = prefill(model, prompt(model, 8))
    assert cache.get_seq_length() == 8


def test_a_prompt_is_of_the_text_models_vocabulary():
    assert torch.equal(prompt(gemma3_with_vision(), 8, 2), prompt(llama(), 8, 2))


def test_an_embedding_that_is_only_looked_up_is_not_read():
    model = llama()
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert read_numbers(model) == matrices - 96 * 32
    assert read_numbers(llama(tie_word_embeddings=True)) == matrices - 96 * 32
    assert read_numbers(ARCHITECTURES["gpt2"]()) > 0


def test_peak_is_what_was_held_at_once():
    def hold():
        return torch.ones(40, 2**20).sum() + torch.ones(60, 2**20).sum()

    peak = peak_of(hold, torch.device("cpu"))
    assert peak is None or 230 * 2**20 < peak < 330 * 2**20


def test_limits_are_of_this_machine():
    limits = measure_limits(torch.device("cpu"), torch.float32)
    assert 1e8 < limits.bandwidth < 1e13 and 1e8 < limits.operations < 1e16
    assert LIMITS.floor(10**6, 1) == (2e-3, "memory")
    assert LIMITS.floor(10**6, 1000) == (2e-2, "compute")


@pytest.mark.parametrize(
    ("bound", "gained", "seconds", "said"),
    [
        (1.9, 1.8, 2e-3, None),
        (1.05, 0.9, 2e-3, "break-even rank"),
        (1.9, 1.1, 2e-2, "90% of the time is not reading weights"),
        (1.9, 1.1, 3e-3, "memory-bound, and two thin products"),
    ],
)
def test_says_why_low_rank_does_not_pay(bound, gained, seconds, said):
    why = reason(bound, gained, LIMITS, numbers=10**6, tokens=1, seconds=seconds)
    assert why is None if said is None else said in why


def test_notes_name_model_and_measure():
    dense = Speed("dense", 4, 2 * 10**6, None, 1.0, 1.0, {1: 4e-3})
    small = Speed("small", 2, 10**6, None, 0.5, 0.5, {1: 3.9e-3})
    (note,) = Bench(Asked(tokens=4), [dense, small], LIMITS, {}).notes()
    assert note.startswith("small, decode 1: 1.03 times")


def test_batches_are_whole_numbers():
    assert parse_batches("1,8") == (1, 8)
    for text in ("", "0", "1,x"):
        with pytest.raises(UsageError, match=r"--batches .* whole numbers from 1"):
            parse_batches(text)


def test_no_larger_product_is_tried_once_one_is_slow(monkeypatch):
    seconds = iter([1.0, 0.01, 0.2])  # of the vector's, of 256 and of 512
    monkeypatch.setattr("slimrank.evaluate.roofline._best", lambda run, device: next(seconds))
    assert measure_limits(torch.device("cpu"), torch.float32).operations == 2 * 512**3 / 0.2
