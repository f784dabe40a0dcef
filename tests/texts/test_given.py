import json
from pathlib import Path

import pytest
import torch

from slimrank import compress, evaluate_models, load
from slimrank.calibrate import Text, sample_windows
from slimrank.errors import SlimrankError, UsageError
from slimrank.plan import Plan
from slimrank.texts.given import TokenRows, read_source, sources_of
from slimrank.texts.reading import Reading, read_windows


def test_a_string_is_a_spec_unless_no_file_could_have_it_as_its_name(tmp_path):
    assert sources_of("a.txt") == ["a.txt"] and sources_of(tmp_path / "a.txt") == [str(tmp_path / "a.txt")]
    assert sources_of(["a.txt*0.3", Path("b.txt")]) == ["a.txt*0.3", "b.txt"] and sources_of(None) == []
    assert sources_of(["a.txt", "b.txt"]) == ["a.txt", "b.txt"]
    (text,) = sources_of("one\ntwo")
    assert isinstance(text, Text) and (text.text, text.source) == ("one\ntwo", "in memory: a string")
    (text,) = sources_of(["short", "x" * 256])
    assert text.text == f"short\n\n{'x' * 256}" and text.source == "in memory: 2 strings"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "A int is no calibration text: give a file's path, strings, a datasets.Dataset, or token ids"),
        ([3, 4], "A int is no calibration text"),
        ({"a": 1}, "A dict is no calibration text"),
        ([[1, 2], [3]], "The rows of token ids have 1 to 2 tokens: cut them to one length."),
        (torch.tensor([1, 2]), r"Token ids of shape \(2,\) and torch.int64: give whole numbers from 0"),
        (torch.rand(2, 3), r"Token ids of shape \(2, 3\) and torch.float32"),
        (torch.tensor([[1, -100]]), "whole numbers from 0"),
    ],
)
def test_what_is_no_text_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        sources_of(given)


def test_the_same_text_gives_the_same_windows_however_it_is_given(place):
    datasets = pytest.importorskip("datasets")
    loaded, words = load("dense"), (place / "text.txt").read_text()
    halves = [words[:10000], words[10000:]]
    (place / "halves.txt").write_text("\n\n".join(halves))
    kinds = {
        "text.txt": [Path("text.txt"), Text(words, "here", "5ha"), words],
        "halves.txt": [halves, datasets.Dataset.from_dict({"text": halves, "id": [1, 2]})],
    }
    for spec, others in kinds.items():
        expected = read_windows(loaded, Reading(spec, samples=8, window=32, seed=3))
        for given in others:
            windows = read_windows(loaded, Reading(given, samples=8, window=32, seed=3))
            assert windows.calibration.equal(expected.calibration) and windows.held_out.equal(expected.held_out)


def test_rows_of_token_ids_are_the_windows(place):
    loaded, rows = load("dense"), torch.arange(20)[:, None].repeat(1, 16)
    for given in (rows, rows.tolist(), rows.numpy()):
        windows = read_windows(loaded, Reading(given, samples=18, window=None, seed=3))
        assert sorted(windows.calibration[:, 0].tolist()) == list(range(18)) and windows.calibration.shape == (18, 16)
        assert sorted(windows.held_out[:, 0].tolist()) == [18, 19]
        more = windows.more(36, 4)[:, 0]
        assert more.bincount().tolist() == [2] * 18
        assert windows.record["source"] == "in memory: 20 rows of token ids"
    with pytest.raises(UsageError, match="--window 8 is not the length of the rows of token ids, 16: leave it out"):
        read_windows(loaded, Reading(rows, samples=4, window=8, seed=3))
    with pytest.raises(SlimrankError, match=r"only 18 of the 19 windows .* so use --samples 18,"):
        read_windows(loaded, Reading(rows, samples=19, window=None, seed=3))
    with pytest.raises(UsageError, match="put the special tokens into them"):
        read_windows(loaded, Reading(rows, samples=4, window=None, seed=3, special_tokens=True))
    with pytest.raises(UsageError, match="holds no chat messages"):
        read_windows(loaded, Reading(rows, samples=4, window=None, seed=3, chat=True))


def test_a_mix_of_kinds(tiny_tokenizer, make_text):
    rows = TokenRows.of(torch.full((40, 12), 7))
    text = Text(make_text(3000), "a.txt", "5ha")
    windows = sample_windows(tiny_tokenizer, [text, rows], samples=20, window=12, seed=3)
    assert int((windows.calibration == 7).all(1).sum()) == 10
    assert [len(own) for own in windows.by_text()] == [10, 10]


def test_a_dataset_is_read_by_its_columns(tiny_tokenizer):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict
    assert read_source(made({"text": ["a", "b"]})).text == "a\n\nb"
    assert read_source(made({"input_ids": [[1, 2], [3, 4]]})).ids.tolist() == [[1, 2], [3, 4]]
    tiny_tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    talk = made({"messages": [[{"role": "user", "content": "Hi"}]]})
    assert read_source(talk, chat=True, tokenizer=tiny_tokenizer).text == "[user] Hi"
    with pytest.raises(UsageError, match="in memory: Dataset of 1 rows has no field 'text': choose one of body as"):
        read_source(made({"body": ["a"]}))
    with pytest.raises(UsageError, match="The DatasetDict holds the splits train, test: give one of them"):
        read_source(datasets.DatasetDict(train=made({"text": ["a"]}), test=made({"text": ["a"]})))
    with pytest.raises(UsageError, match="The IterableDataset has no length"):
        read_source(made({"text": ["a"]}).to_iterable_dataset())


def test_a_plan_made_from_what_was_in_memory_asks_for_it_again(place):
    words = (place / "text.txt").read_text()
    options = {"samples": 8, "window": 32}
    made = compress(load("dense"), "svd-llm", keep=0.5, calibration=words, plan_only=True, **options).plan
    plan = Plan.model_validate(json.loads(made.to_json()))
    with pytest.raises(UsageError, match="The text was given in memory: a string: give it again as calibration="):
        compress(load("dense"), plan=plan)
    assert compress(load("dense"), plan=plan, calibration=words).plan.budget.used == made.budget.used


def test_models_are_evaluated_on_what_is_in_memory_too(place):
    words = (place / "text.txt").read_text()
    options = {"window": 32, "max_windows": 4}
    by_file, by_path, by_string = (
        evaluate_models(["dense"], [one], **options)[0].texts for one in ("text.txt", Path("text.txt"), words)
    )
    assert by_file == by_path
    assert by_string["in memory: a string"].nats == by_file["text.txt"].nats
    with pytest.raises(UsageError, match="evaluated on text, not on token ids"):
        evaluate_models(["dense"], [torch.ones(3, 4, dtype=torch.int64)])
