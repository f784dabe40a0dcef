import math

import pytest
import torch
from tokenizers import processors

from slimrank.calibrate import Text
from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate import perplexity


@pytest.fixture(scope="module")
def text(make_text):
    return Text(make_text(150, seed=4), "story.txt", "")


def naive(model, ids, window, windows):
    """Token by token from the definition, in float64: (mean nats, predicted tokens)."""
    nats = []
    for start in range(0, windows * window, window):
        chunk = torch.tensor(ids[start : start + window])
        with torch.no_grad():
            logits = model(chunk[None]).logits[0].double()
        for position in range(window - 1):
            probability = torch.softmax(logits[position], 0)[chunk[position + 1]]
            nats.append(-math.log(probability))
    return math.fsum(nats) / len(nats), len(nats)


@pytest.mark.parametrize("special_tokens", ["text", "none"])
@pytest.mark.parametrize(("window", "max_windows", "batch_size"), [(32, None, None), (50, 3, 2), (7, 100, 1)])
def test_against_the_definition(tiny_llama, tiny_tokenizer, text, special_tokens, window, max_windows, batch_size):
    model = tiny_llama()
    ids = tiny_tokenizer(text.text, add_special_tokens=special_tokens == "text")["input_ids"]
    windows = min(len(ids) // window, max_windows or len(ids))
    assert len(ids) % window and (ids[0] == 0) == (special_tokens == "text")
    expected, tokens = naive(model, ids, window, windows)
    measured = perplexity(
        model, tiny_tokenizer, text, window=window, max_windows=max_windows, batch_size=batch_size,
        special_tokens=special_tokens,
    )  # fmt: skip
    assert measured.nats == pytest.approx(expected, rel=1e-6)
    assert measured.perplexity == math.exp(measured.nats)
    assert (measured.tokens, measured.windows, measured.window) == (tokens, windows, window)


def test_special_tokens_before_every_window(tiny_llama, tiny_tokenizer, text):
    model, plain = tiny_llama(), tiny_tokenizer(text.text, add_special_tokens=False)["input_ids"]
    rows = [id for start in range(0, len(plain) // 31 * 31, 31) for id in (0, *plain[start : start + 31])]
    expected, tokens = naive(model, rows, 32, len(rows) // 32)
    measured = perplexity(model, tiny_tokenizer, text, window=32, special_tokens="window")
    assert measured.nats == pytest.approx(expected, rel=1e-6)
    assert (measured.tokens, measured.special_tokens) == (tokens, "window")
    assert perplexity(model, tiny_tokenizer, text, window=32).special_tokens == "text"
    with pytest.raises(UsageError, match=r"^--special-tokens True is unknown: choose one of none, text, window\.$"):
        perplexity(model, tiny_tokenizer, text, window=32, special_tokens=True)


def test_a_tokenizer_without_special_tokens_has_none_to_place(tiny_llama, tiny_tokenizer, text):
    tiny_tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    places = [perplexity(tiny_llama(), tiny_tokenizer, text, window=32, special_tokens=p) for p in ("text", "window")]
    assert places[0] == places[1] and places[0].special_tokens == "none"


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tiny_llama, tiny_tokenizer, text):
    model = tiny_llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, tiny_tokenizer, text, window=16).perplexity == pytest.approx(320, rel=1e-6)


def test_half_precision_models_are_measured_with_fp32_softmax(tiny_llama, tiny_tokenizer, text):
    model = tiny_llama().to(torch.bfloat16)
    ids = tiny_tokenizer(text.text)["input_ids"]
    expected, _ = naive(model, ids, 32, 2)
    measured = perplexity(model, tiny_tokenizer, text, window=32, max_windows=2, batch_size=1)
    assert measured.nats == pytest.approx(expected, rel=1e-6)


def test_batches_do_not_change_the_measure(tiny_llama, tiny_tokenizer, text):
    one, many = (perplexity(tiny_llama(), tiny_tokenizer, text, window=16, batch_size=b) for b in (1, 5))
    assert one.nats == pytest.approx(many.nats, rel=1e-7)


def test_training_flags_come_back(tiny_llama, tiny_tokenizer, text):
    model = tiny_llama(attention_dropout=0.5).train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    measured = perplexity(model, tiny_tokenizer, text, window=16)
    assert [module.training for module in model.modules()] == modes
    assert measured == perplexity(model.eval(), tiny_tokenizer, text, window=16)


def test_progress(tiny_llama, tiny_tokenizer, text):
    seen = []

    def track(iterable, description, total):
        for item in iterable:
            seen.append((description, total))
            yield item

    perplexity(tiny_llama(), tiny_tokenizer, text, window=16, max_windows=5, batch_size=2, track=track)
    assert seen == [("Perplexity on story.txt", 3)] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_names_its_window(tiny_llama, tiny_tokenizer, text, value):
    """Only one token's logit is broken, and only in the fifth window; the run stops although its loss may be finite."""
    model = tiny_llama()
    calls = []

    def spoil(module, arguments, logits):
        calls.append(len(logits))
        if len(calls) == 3:
            logits = logits.clone()
            logits[0, 3, 311] = value
        return logits

    model.lm_head.register_forward_hook(spoil)
    model.train()
    with pytest.raises(
        SlimrankError, match=r"^The model's logits are not finite on window 5 of story.txt: .*wider dtype$"
    ):
        perplexity(model, tiny_tokenizer, text, window=16, batch_size=2)
    assert model.training and calls == [2, 2, 2]


def test_options_and_texts_that_leave_nothing_to_measure(tiny_llama, tiny_tokenizer):
    model, text = tiny_llama(), Text("the river", "short.txt", "")
    with pytest.raises(
        SlimrankError, match=r"^short.txt holds \d tokens, not one window of 64: give a smaller --window"
    ):
        perplexity(model, tiny_tokenizer, text, window=64)
    with pytest.raises(UsageError, match=r"^--window 1 leaves no token to predict"):
        perplexity(model, tiny_tokenizer, text, window=1)
    with pytest.raises(UsageError, match=r"^--max-windows 0 leaves nothing"):
        perplexity(model, tiny_tokenizer, text, window=2, max_windows=0)


def test_a_tokenizer_that_knows_more_than_the_model(tiny_llama, tiny_tokenizer, text):
    with pytest.raises(SlimrankError, match=r"gives the id \d+, but the model embeds ids below 200"):
        perplexity(tiny_llama(vocab_size=200), tiny_tokenizer, text, window=32)
