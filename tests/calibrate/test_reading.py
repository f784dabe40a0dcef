import pytest

from slimrank import compress, load
from slimrank.errors import SlimrankError


def test_a_tokenizer_that_knows_more_than_the_model_ends_the_run_in_a_sentence(place, tiny_llama):
    tiny_llama(vocab_size=200).save_pretrained(place / "dense")
    with pytest.raises(SlimrankError, match=r"gives the id 3\d\d, but the model embeds ids below 200"):
        compress(load("dense"), "svd-llm", calibration="text.txt", samples=8, window=32)
