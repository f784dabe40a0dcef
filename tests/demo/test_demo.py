from transformers import AutoTokenizer, PreTrainedTokenizerFast

from slimrank import demo


def test_paths_lie_inside_the_package():
    folder = demo.MODEL.parent
    assert (folder / "__init__.py").is_file()
    assert demo.text("calibration") == folder / "text" / "calibration.txt"
    assert demo.text("evaluation") == folder / "text" / "evaluation.txt"


def test_the_tokenizer_names_a_class_of_transformers_4_and_5():
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in (demo.MODEL / "tokenizer_config.json").read_text()
    assert tokenizer.decode(tokenizer("def f(x):\n    return x")["input_ids"]) == "def f(x):\n    return x"
