import pytest

from slimrank import compress, load
from slimrank.calibrate.reading import Reading, read_windows
from slimrank.errors import SlimrankError


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
