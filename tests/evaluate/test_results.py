import json
import math

from slimrank.evaluate import ModelResult, Perplexity, count_parameters, to_json, weight_bytes
from slimrank.evaluate.likeness import Distance

DENSE = ModelResult("dense", {"a": Perplexity(math.exp(2), 2.0, 30, 2, 16, (1.5, 2.5))}, 100, 150, 600)
SMALL = ModelResult(
    "small",
    {
        "a": Perplexity(math.exp(2.5), 2.5, 30, 2, 16, (1.75, 3.25), (0.125, 0.375)),
        "b": Perplexity(math.inf, 800.0, 15, 1, 16, (800.0,)),
    },
    80,
    130,
    520,
    distances={"a": Distance(0.75, 0.125)},
)


def test_nats_lost_against_the_first():
    assert SMALL.lost(DENSE)["a"].value == 0.5
    assert DENSE.lost(DENSE)["a"].value == 0.0


def test_json():
    document = json.loads(to_json([DENSE, SMALL]))
    assert document["version"] == 1
    dense, small = document["models"]
    assert dense == {
        "name": "dense",
        "parameters": {"linears": 100, "model": 150},
        "bytes": 600,
        "texts": {
            "a": {
                "perplexity": math.exp(2),
                "perplexity_stderr": math.exp(2) * 0.5,
                "nats": 2.0,
                "nats_stderr": 0.5,
                "nats_lost": 0.0,
                "nats_lost_stderr": 0.0,
                "kl": 0.0,
                "kl_stderr": 0.0,
                "tokens": 30,
                "windows": 2,
                "window": 16,
                "special_tokens": None,
                "distance": None,
                "distance_usual": None,
            }
        },
        "tasks": {},
        "notes": [],
    }
    assert (small["texts"]["a"]["kl"], small["texts"]["a"]["kl_stderr"]) == (0.25, 0.125)
    assert (small["texts"]["a"]["distance"], small["texts"]["a"]["distance_usual"]) == (0.75, 0.125)
    assert small["texts"]["a"]["nats_lost_stderr"] == 0.25 and small["texts"]["b"]["kl"] is None
    assert small["texts"]["a"]["nats_lost"] == 0.5
    assert small["texts"]["b"]["perplexity"] is None and small["texts"]["b"]["nats_lost"] is None
    assert to_json([DENSE, SMALL]) == to_json([DENSE, SMALL])
    assert json.loads(to_json([])) == {"version": 1, "models": []}


def test_tied_parameters_count_once(tiny_llama):
    width, mlp, vocabulary = 32, 48, 320
    block = 2 * width * width + 2 * width * width // 2 + 3 * width * mlp + 2 * width
    body = 2 * block + width + vocabulary * width
    assert count_parameters(tiny_llama(tie_word_embeddings=True)) == body
    assert count_parameters(tiny_llama()) == body + vocabulary * width


def test_bytes_are_those_of_the_files_that_load(tmp_path):
    for name, size in (("model.safetensors", 7), ("consolidated.safetensors", 7), ("model-1.safetensors", 5)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert weight_bytes(tmp_path) == 7
    places = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    index = {"metadata": {}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-2.safetensors").write_bytes(b"xxx")
    assert weight_bytes(tmp_path) == 7  # the single file is what transformers reads
    (tmp_path / "model.safetensors").unlink()
    assert weight_bytes(tmp_path) == 8


def test_a_folder_without_safetensors_has_no_bytes_of_them(tmp_path):
    assert weight_bytes(tmp_path) == 0
