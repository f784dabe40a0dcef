"""What models lost against the first one: nats with the error of the paired differences, and KL."""

import math

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from torch.nn.functional import kl_div

from slimrank import compress, evaluate_models, load
from slimrank.calibrate import Text
from slimrank.errors import UsageError
from slimrank.evaluate import perplexity
from slimrank.evaluate.reference import reference_of
from slimrank.model.load import Loaded
from slimrank.recipe import load_recipe
from slimrank.runtime.memory import Limits, Room

WINDOW = 16


@pytest.fixture(scope="module")
def text(make_text):
    return Text(make_text(150, seed=4), "story.txt", "")


@pytest.fixture
def near(tiny_llama):
    """A model, and one whose weights are a little off."""
    models = tiny_llama(), tiny_llama()
    with torch.no_grad():
        for parameter in models[1].model.layers.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return models


def windows(tokenizer, text):
    ids = torch.tensor(tokenizer(text.text)["input_ids"])
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


def log_probabilities(model, ids):
    """(windows, tokens - 1, vocabulary) float64, window by window."""
    with torch.no_grad():
        return torch.cat([model(one[None]).logits[:, :-1].double().log_softmax(-1) for one in ids])


def losses(model, ids):
    """Mean nats of each window."""
    return -log_probabilities(model, ids).gather(2, ids[:, 1:, None])[..., 0].mean(1).numpy()


def stderr(values):
    return np.std(values, ddof=1) / math.sqrt(len(values))


def test_standard_errors_and_kl_against_the_definitions(near, tiny_tokenizer, text):
    ids = windows(tiny_tokenizer, text)
    first, second = evaluate_models({"a": near[0], "b": near[1]}, [text], tokenizer=tiny_tokenizer, window=WINDOW)
    own, other = (losses(model, ids) for model in near)
    found = second.texts["story.txt"]
    assert found.nats == pytest.approx(other.mean(), rel=1e-6) and found.windows == len(ids)
    assert found.nats_stderr == pytest.approx(stderr(other), rel=1e-5)
    assert found.perplexity_stderr == pytest.approx(math.exp(other.mean()) * stderr(other), rel=1e-5)
    lost = second.lost(first)["story.txt"]
    assert lost.value == pytest.approx((other - own).mean(), rel=1e-4)
    assert lost.stderr == pytest.approx(stderr(other - own), rel=1e-4)
    assert lost.stderr < 0.5 * math.hypot(found.nats_stderr, first.texts["story.txt"].nats_stderr)
    p, q = (log_probabilities(model, ids) for model in near)
    expected = [kl_div(b, a, reduction="batchmean", log_target=True).item() for a, b in zip(p, q, strict=True)]
    assert found.kl.value == pytest.approx(np.mean(expected), rel=1e-5)
    assert found.kl.stderr == pytest.approx(stderr(expected), rel=1e-4)
    assert first.texts["story.txt"].kl is None and not first.notes + second.notes


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "opt"])
def test_a_model_is_at_no_distance_from_itself(kind, tiny_tokenizer):
    ids = torch.arange(1, 91).remainder(90).tolist()
    tokenizer = Fixed(ids)
    model = ARCHITECTURES[kind]()
    model.train()
    _, again = evaluate_models([model, model], [Text("", "ids", "")], tokenizer=tokenizer, window=9)
    assert again.texts["ids"].kl == (0.0, 0.0) and again.texts["ids"].windows == 10
    assert model.training


class Fixed:
    """A tokenizer of one text."""

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, texts, **options):
        return {"input_ids": [self.ids for _ in texts]}


def test_states_that_have_no_room_go_to_files(near, tiny_tokenizer, text):
    found = []
    for room in (Room(), Room(host=1)):
        reference = reference_of(near[0], room)
        options = {"window": WINDOW, "batch_size": 3, "first": reference}
        perplexity(near[0], tiny_tokenizer, text, is_first=True, **options)
        found.append(perplexity(near[1], tiny_tokenizer, text, **options).kl_by_window)
    assert found[0] == found[1] and len(found[0]) > 3


def test_other_vocabularies_and_other_tokens_are_not_compared(tiny_llama, tiny_tokenizer, text):
    models = {"a": tiny_llama(), "b": tiny_llama(vocab_size=400)}
    first, second = evaluate_models(models, [text], tokenizer=tiny_tokenizer, window=WINDOW)
    assert second.texts["story.txt"].kl is None and second.lost(first)["story.txt"].stderr is not None
    assert second.notes == ("There is no KL of b to a on story.txt: their vocabularies are not of one size.",)


def test_loaded_models_are_compared_with_what_they_became(place):
    text = "text.txt"
    dense, options = load("dense"), {"keep": 0.6, "calibration": text, "samples": 8, "window": 32}
    small = compress(load("dense"), load_recipe("svd-llm"), **options)
    small.save("small")
    by_name = evaluate_models(["dense", "small"], [text], window=32, max_windows=8)
    models = {"dense": dense, "small": small.model, "loaded": small.loaded}
    in_memory = evaluate_models(models, [text], window=32, max_windows=8)
    assert [one.name for one in in_memory] == ["dense", "small", "loaded"]
    assert in_memory[1].texts == in_memory[2].texts
    named, held = by_name[1].texts[text], in_memory[1].texts[text]
    assert named.kl.value == pytest.approx(held.kl.value, rel=0.02)  # the saved one is bfloat16
    assert held.kl.value > 0.01 and in_memory[1].linear_parameters == by_name[1].linear_parameters
    assert all(parameter.device.type == "cpu" for parameter in dense.model.parameters())  # still whole


def test_another_tokenizers_text_is_not_compared(tiny_llama, tiny_tokenizer, text):
    ids = torch.randint(0, 320, (200,)).tolist()
    models = {"a": tiny_llama(), "b": Loaded("b", tiny_llama(), Fixed(ids), torch.float32, None)}
    first, second = evaluate_models(models, [text], tokenizer=tiny_tokenizer, window=WINDOW)
    assert second.texts["story.txt"].kl is None and second.lost(first)["story.txt"].stderr is None
    assert second.notes == ("b reads story.txt in other tokens than a: no KL, and nats of its own tokens.",)


def test_a_model_without_a_tokenizer_is_refused(tiny_llama, text):
    with pytest.raises(UsageError, match="MODEL bare comes without a tokenizer: give one by tokenizer="):
        evaluate_models({"bare": tiny_llama()}, [text])


def test_a_model_in_parts_is_refused(place, monkeypatch):
    monkeypatch.setattr(Limits, "of", lambda memory, device: Limits(2**40, 1, Room()))
    found = compress("dense", "svd-llm", calibration="text.txt", samples=8, window=32, out="small")
    asked = {"tokenizer": found.loaded.tokenizer, "window": 32}
    for model in (found.loaded, found.loaded.model):
        with pytest.raises(UsageError, match="MODEL small is not in memory as a whole: give the folder"):
            evaluate_models({"small": model}, ["text.txt"], **asked)
    evaluate_models({"small": found.model}, ["text.txt"], **asked)  # which is loaded from there
