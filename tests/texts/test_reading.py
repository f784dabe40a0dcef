import json

import pytest

from slimrank import compress, load
from slimrank.errors import SlimrankError, UsageError
from slimrank.texts.reading import Reading, read_windows, specs_again


def test_a_tokenizer_that_knows_more_than_the_model_ends_the_run_in_a_sentence(place, tiny_llama):
    tiny_llama(vocab_size=200).save_pretrained(place / "dense")
    with pytest.raises(SlimrankError, match=r"gives the id 3\d\d, but the model embeds ids below 200"):
        compress(load("dense"), "svd-llm", calibration="text.txt", samples=8, window=32)


def test_windows_drawn_later_are_looked_at_too(place, tiny_llama):
    tiny_llama().save_pretrained(place / "dense")
    loaded = load("dense")
    windows = read_windows(loaded, Reading("text.txt", samples=8, window=32, seed=3))
    assert windows.more(4, 5).shape == (4, 32)
    loaded.model.resize_token_embeddings(200)
    with pytest.raises(SlimrankError, match=r"gives the id 3\d\d, but the model embeds ids below 200"):
        windows.more(4, 5)


@pytest.fixture
def two(place, make_text):
    """The model, and the windows of two texts."""
    (place / "other.txt").write_text(make_text(4000, seed=1))
    loaded = load("dense")
    return loaded, read_windows(loaded, Reading(["text.txt*0.25", "other.txt"], samples=8, window=32, seed=3))


def test_the_record_of_several_texts_is_read_again(two, place):
    loaded, windows = two
    record = json.loads(json.dumps(windows.record))
    assert [text["share"] for text in record["texts"]] == [0.25, 0.75]
    assert specs_again(record) == ["text.txt*0.25", "other.txt*0.75"]
    (place / "text.txt").rename(place / "moved*0.5")
    for given in (["moved*0.5*0.25", "other.txt"], ["moved*0.5*0.25", "other.txt*0.75"]):
        again = read_windows(loaded, Reading.again(record, given), record)
        assert again.calibration.equal(windows.calibration) and again.held_out.equal(windows.held_out)
        assert again.more(5, 4).equal(windows.more(5, 4))


def test_another_text_or_share_than_the_records_is_refused(two):
    loaded, windows = two
    swapped = Reading.again(windows.record, ["other.txt", "text.txt"])
    with pytest.raises(UsageError, match=r"^other\.txt is not the text that the plan was made with"):
        read_windows(loaded, swapped, windows.record)
    with pytest.raises(UsageError, match=r"was made with 2 calibration texts, and --calibration names 1: name as many"):
        Reading.again(windows.record, "text.txt")
    with pytest.raises(UsageError, match=r"gives text\.txt a share of 0\.25, not 0\.5: leave the share out"):
        Reading.again(windows.record, ["text.txt*0.5", "other.txt"])
    for texts, said in (("a", "is no list of texts"), ([{"source": "a", "sha256": "b"}], "has no 'share'")):
        with pytest.raises(UsageError, match=said):
            Reading.again(windows.record | {"texts": texts}, None)


def test_a_single_text_is_again_what_it_was(place):
    loaded = load("dense")
    (place / "odd*0.5").write_text((place / "text.txt").read_text())
    for spec, source in (("text.txt", "text.txt"), ("odd*0.5*1", "odd*0.5")):
        windows = read_windows(loaded, Reading(spec, samples=8, window=32, seed=3))
        assert windows.record["source"] == source and "texts" not in windows.record
        again = read_windows(loaded, Reading.again(windows.record, None), windows.record)
        assert again.record == windows.record and again.calibration.equal(windows.calibration)
