import logging
import random
from functools import partial

import pytest
import torch
from transformers import Gemma3Config, GPT2Config, LlamaConfig, PretrainedConfig

from slimrank import calibrate
from slimrank.calibrate import Text, check_window, context_length
from slimrank.errors import SlimrankError, UsageError

sample_windows = partial(calibrate.sample_windows, special_tokens=True)


@pytest.fixture(scope="module")
def text(make_text):
    return Text(make_text(6000), "story.txt", "5ha")


def ids(tokenizer, characters):
    return tokenizer(characters, verbose=False)["input_ids"]


def test_each_window_is_the_beginning_of_the_text_from_a_random_character(tiny_tokenizer, text):
    windows = sample_windows(tiny_tokenizer, text, samples=12, window=40, seed=3)
    boundary = int(len(text.text) * 0.9)
    assert windows.calibration.shape == (12, 40) and windows.calibration.dtype == torch.int64
    for part, rows in (
        (text.text[:boundary], windows.calibration.tolist()),
        (text.text[boundary:], windows.held_out.tolist()),
    ):
        rng = random.Random(3)
        expected = [ids(tiny_tokenizer, part[rng.randrange(len(part)) :])[:40] for _ in rows]
        assert rows == expected
    assert windows.calibration[:, 0].eq(0).all()  # <s>, the tokenizer's default


def test_no_special_token_comes_before_a_window_unasked(tiny_tokenizer, text):
    with_bos = sample_windows(tiny_tokenizer, text, samples=4, window=40, seed=3).calibration
    without = calibrate.sample_windows(tiny_tokenizer, text, samples=4, window=39, seed=3).calibration
    assert torch.equal(with_bos[:, 1:], without) and (with_bos[:, 0] == 0).all()


def test_further_windows_come_from_the_same_part(tiny_tokenizer):
    text = Text("a" * 900 + "b" * 100, "ab", "")
    windows = calibrate.sample_windows(tiny_tokenizer, text, samples=2, window=10, seed=0)
    more = windows.more(50, 7)
    assert more.shape == (50, 10) and set(tiny_tokenizer.decode(more.flatten())) == {"a"}
    assert torch.equal(windows.more(50, 7), more)


def test_held_out_windows_come_from_the_last_tenth_only(tiny_tokenizer):
    text = Text("a" * 9000 + "b" * 1000, "ab", "")
    windows = sample_windows(tiny_tokenizer, text, samples=30, window=20, seed=0)
    a, b = (set(ids(tiny_tokenizer, letter * 50)) - {0} for letter in "ab")
    assert set(windows.calibration.flatten().tolist()) - {0} <= a
    assert set(windows.held_out.flatten().tolist()) - {0} <= b


def test_same_seed_same_windows_and_the_global_generators_are_left_alone(tiny_tokenizer, text):
    python, torch_state = random.getstate(), torch.get_rng_state()
    first, again, other = (sample_windows(tiny_tokenizer, text, samples=5, window=32, seed=s) for s in (1, 1, 2))
    assert first.calibration.equal(again.calibration) and first.held_out.equal(again.held_out)
    assert not first.calibration.equal(other.calibration)
    assert random.getstate() == python and torch.get_rng_state().equal(torch_state)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_exactly_as_many_windows_as_asked_even_where_only_the_start_yields_one(tiny_tokenizer, text, samples):
    """A window that fills 1/samples of the first nine tenths: most offsets come out short and are drawn again."""
    head = text.text[: len(text.text) * 9 // 10]
    window = len(ids(tiny_tokenizer, head)) // samples
    windows = sample_windows(tiny_tokenizer, text, samples=samples, window=window, seed=0, held_out=0)
    assert windows.calibration.shape == (samples, window)
    assert windows.held_out.shape == (0, window)


def test_slices_grow_where_the_text_turns_sparse(tiny_tokenizer):
    """The beginning has 1 character a token, the rest far more: the first guess of a slice is too short."""
    text = Text("\x07" * 300 + "the river and stone " * 1000, "mixed", "")
    windows = sample_windows(tiny_tokenizer, text, samples=6, window=30, seed=5)
    head, rng = text.text[: len(text.text) * 9 // 10], random.Random(5)
    expected = [ids(tiny_tokenizer, head[rng.randrange(len(head)) :])[:30] for _ in range(6)]
    assert windows.calibration.tolist() == expected


@pytest.mark.parametrize(("samples", "held_out", "count"), [(4, None, 8), (80, None, 10), (4, 3, 3), (4, 20, 20)])
def test_number_of_held_out_windows(tiny_tokenizer, text, samples, held_out, count):
    windows = sample_windows(tiny_tokenizer, text, samples=samples, window=20, seed=0, held_out=held_out)
    assert windows.held_out.shape == (count, 20)
    assert windows.record["held_out"] == count


def test_default_held_out_is_bounded_by_what_the_tail_yields(tiny_tokenizer, text):
    tail = ids(tiny_tokenizer, text.text[len(text.text) * 9 // 10 :])
    for yielded in (1, 3):
        window = len(tail) // yielded
        assert len(sample_windows(tiny_tokenizer, text, samples=1, window=window, seed=0).held_out) == yielded


def test_too_short(tiny_tokenizer, text):
    head = text.text[: len(text.text) * 9 // 10]
    yielded = len(ids(tiny_tokenizer, head)) // 50
    assert len(sample_windows(tiny_tokenizer, text, samples=yielded, window=50, seed=0).calibration) == yielded
    message = (
        f"The text is too short: only {yielded} of the {yielded + 1} windows of 50 tokens fit into the first nine"
        f" tenths of story.txt, so use --samples {yielded}, a smaller --window or more text"
    )
    with pytest.raises(SlimrankError, match=f"^{message}$"):
        sample_windows(tiny_tokenizer, text, samples=yielded + 1, window=50, seed=0)
    with pytest.raises(SlimrankError, match=r"only 0 of the 1 windows of 50000 tokens .* so use a smaller --window"):
        sample_windows(tiny_tokenizer, text, samples=1, window=50000, seed=0)
    tail = len(ids(tiny_tokenizer, text.text[len(head) :]))
    with pytest.raises(
        SlimrankError, match=r"only 1 of the 2 windows .* the last tenth of story.txt .* use held_out 1,"
    ):
        sample_windows(tiny_tokenizer, text, samples=1, window=tail, seed=0, held_out=2)


def test_a_text_that_only_looks_long_enough(tiny_tokenizer):
    """More than 16 characters a token: the character count does not see that the text is too short."""
    tiny_tokenizer.add_tokens(["-" * 100])
    with pytest.raises(SlimrankError, match=r"only 0 of the 1 windows of 200 tokens"):
        sample_windows(tiny_tokenizer, Text("-" * 10000, "rule", ""), samples=1, window=200, seed=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"samples": 0}, "--samples 0"), ({"window": 0}, "--window 0"), ({"held_out": -1}, "held_out -1")],
)
def test_counts_below_one(tiny_tokenizer, text, arguments, named):
    with pytest.raises(UsageError, match=f"^{named} is too small"):
        sample_windows(tiny_tokenizer, text, **{"samples": 2, "window": 8, "seed": 0} | arguments)


def test_record_and_fingerprint(tiny_tokenizer, text):
    record = sample_windows(tiny_tokenizer, text, samples=4, window=16, seed=9).record
    tokenizer = record.pop("tokenizer")
    assert record == {
        "source": "story.txt", "sha256": "5ha", "samples": 4, "window": 16, "seed": 9, "held_out": 8,
        "special_tokens": True,
    }  # fmt: skip
    tiny_tokenizer("cut", truncation=True, max_length=2)
    assert sample_windows(tiny_tokenizer, text, samples=1, window=4, seed=0).record["tokenizer"] == tokenizer
    tiny_tokenizer.add_tokens(["zebra"])
    assert sample_windows(tiny_tokenizer, text, samples=1, window=4, seed=0).record["tokenizer"] != tokenizer


def test_no_warning_about_long_sequences(tiny_tokenizer, text, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    sample_windows(tiny_tokenizer, text, samples=50, window=100, seed=0)
    assert "longer than" not in caplog.text
    tiny_tokenizer(text.text)
    assert "longer than" in caplog.text


def test_context_length():
    assert context_length(LlamaConfig(max_position_embeddings=77)) == 77
    assert context_length(GPT2Config(n_positions=55)) == 55
    assert context_length(Gemma3Config(text_config={"max_position_embeddings": 99})) == 99
    assert context_length(PretrainedConfig()) is None


def test_check_window():
    check_window(64, LlamaConfig(max_position_embeddings=64))
    check_window(10**6, PretrainedConfig())
    with pytest.raises(UsageError, match=r"^--window 65 is beyond the model's context of 64 tokens: give at most 64$"):
        check_window(65, LlamaConfig(max_position_embeddings=64))
