"""Damaged inputs: mutations of JSON documents, bytes, folders and arguments, each from a seed."""

import copy
import gzip
import json
import random
from pathlib import Path
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 7, 2**31, 2**63, 10**30, 0.5, -2.5, 1e308, float("nan"), float("inf"), "", "x",
    "../../escaped", "/tmp/escaped", "\x00", "é\u2028", "a" * 3000, "__class__", "!!python/object:os.system", [], [[]],
    [1, 2], [None], {}, {"a": {}}, {"name": 1},
)  # fmt: skip


def places(document: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a document."""
    inside = document.items() if isinstance(document, dict) else enumerate(document)
    found = [path]
    for key, value in inside:
        found += places(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]
    return found


def damaged_document(document: Any, rng: random.Random) -> Any:
    """One to three values replaced, removed, moved or added."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 3))):
        *parents, last = rng.choice(places(document)[1:] or [(0,)])
        owner = document
        for key in parents:
            owner = owner[key]
        action = rng.random()
        if action < 0.65:
            owner[last] = copy.deepcopy(rng.choice(NASTY))
        elif action < 0.8:
            del owner[last]
        elif action < 0.9 and isinstance(owner, dict):
            owner[rng.choice(("extra", "version", "name", "", *map(str, owner)))] = owner[last]
        else:
            owner[last] = copy.deepcopy(document)
        if not isinstance(document, dict | list) or not document:
            break
    return document


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """A piece cut out, overwritten, doubled or put in, or the rest cut off; mostly near the beginning."""
    start = int(len(content) * rng.random() ** 3)
    end = min(len(content), start + rng.choice((1, 1, 4, 100)))
    random_ones, twice = rng.randbytes(end - start), content[start:end] * 2
    new = rng.choice((b"", random_ones, twice, b"\xff", b"\x00" * 8, b"{", b"]", b'"', b"[" * 100_000))
    return content[:start] if rng.random() < 0.2 else content[:start] + new + content[end:]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A JSON file, damaged as a document or as bytes."""
    if rng.random() < 0.75:
        return json.dumps(damaged_document(json.loads(content), rng)).encode()
    return damaged_bytes(content, rng)


def damaged_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is damaged as a document, with or without its right length, or as bytes."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = rng.random()
    if kind < 0.6:
        header = json.dumps(damaged_document(json.loads(header), rng)).encode()
    elif kind < 0.8:
        return damaged_bytes(content, rng)
    else:
        size = rng.choice((0, size - 1, size + 1, 2**31, 2**63, rng.randrange(10**6)))
        return size.to_bytes(8, "little") + header + data
    return len(header).to_bytes(8, "little") + header + data


KEYS: dict[str, tuple[Any, ...]] = {
    "quantization_config": ({}, {"quant_method": "gptq"}, {"quant_method": "slimrank"}, "x", [1]),
    "auto_map": ({"AutoModelForCausalLM": "own.Model"}, "x", {}),
    "model_type": ("gpt2", "no_such", "bert", "t5", ""),
    "architectures": (["GPT2LMHeadModel"], ["NoSuchModel"], [], "x"),
    "dtype": ("float16", "float32", "float8_e4m3fn", "int8", "auto", "x"),
    "tie_word_embeddings": (True, False),
    "rope_scaling": ({"rope_type": "linear", "factor": 2.0}, {"rope_type": "x"}, {"type": "dynamic"}, 3),
    "rope_parameters": ({"rope_type": "yarn", "factor": 4.0}, {"rope_theta": 7.0}, {}, "x"),
    "layer_types": (["full_attention"], ["sliding_attention", "full_attention"], ["x", "y"]),
    "output_attentions": (True,),
    "use_cache": (False, None),
    "_attn_implementation": ("eager", "flash_attention_2", "x"),
    "is_encoder_decoder": (True,),
    "text_config": ({}, {"hidden_size": 8}, {"model_type": "llama"}),
}  # fmt: skip


def damaged_config(content: bytes, rng: random.Random) -> bytes:
    """A config with one to three known keys set to other values: of the same type, of another, or what they may be."""
    config = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice([*config, *KEYS])
        value = config.get(key)
        near: list[Any] = [not value] if isinstance(value, bool) else []
        if isinstance(value, int | float) and not isinstance(value, bool):
            near = [value + 1, value - 1, value * 2, 0, -value]
        others = (*KEYS.get(key, ()), *near, rng.choice(NASTY))
        config[key] = rng.choice(others)
    return json.dumps(config).encode()


def damage_files(folder: Path, rng: random.Random) -> None:
    """One or two of a folder's files lost, cut off, replaced, swapped, or strangers beside them."""
    for _ in range(rng.choice((1, 1, 2))):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if files:
            rng.choice(FILES)(rng.choice(files), rng.choice(files), rng)


def lose(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()


def cut_off(path: Path, other: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size + 1)])


def overwrite(path: Path, other: Path, rng: random.Random) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n".encode()
    path.write_bytes(rng.choice((b"", pointer, other.read_bytes(), gzip.compress(path.read_bytes()), b"\x00" * 100)))


def swap(path: Path, other: Path, rng: random.Random) -> None:
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def make_folder(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice((other, path, path.with_name("nowhere"))))


def rename(path: Path, other: Path, rng: random.Random) -> None:
    path.rename(path.with_name(rng.choice((f"{path.name}.bak", "pytorch_model.bin", "x", "model.safetensors"))))


def add(path: Path, other: Path, rng: random.Random) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": rng.choice((other.name, "../x", "y.safetensors"))}}
    name, content = rng.choice(
        (
            ("model.safetensors.index.json", json.dumps(index).encode()),
            ("adapter_config.json", b'{"peft_type": "LORA"}'),
            ("pytorch_model.bin", b"x"),
            ("model.safetensors", other.read_bytes()),
            ("generation_config.json", b'{"max_new_tokens": -3, "do_sample": false, "temperature": 0.3}'),
            ("chat_template.jinja", b"{{ {% }}"),
            ("special_tokens_map.json", b'{"bos_token": 3}'),
            ("added_tokens.json", b'{"<new>": 1}'),
        )
    )
    (path.parent / name).write_bytes(content)


FILES = (lose, lose, cut_off, cut_off, overwrite, overwrite, swap, make_folder, link, rename, add, add, add)


def arguments(rng: random.Random, options: dict[str, Any]) -> dict[str, Any]:
    """Options of compress, one or two of them replaced."""
    values: dict[str, tuple[Any, ...]] = {
        "recipe": ("no-such", "svd-llm", "../x.yaml", Path("x.yaml"), ["svd"], {"metric": "identity"}),
        "keep": (0.001, 1, 0.9999, "0.5", float("nan"), 2, -0.5),
        "samples": (0, -1, 10**9, 1, 2.5, "3"),
        "window": (0, 1, 2, -4, 10**6, 17.0, "16"),
        "seed": (-1, 2**64, 1.5, "x"),
        "settings": ("metric=x", ["metric"], ["a=b"], [3], [None], ["form.multiple=0"], {"a": 1}),
        "device": ("cuda:9", "gpu", "meta", 0, "mps"),
        "dtype": ("float64", "int8", "auto", "bf16"),
        "memory": (0, -1, 1, 10**5, "8GB", 2.5),
        "special_tokens": ("window", 3, None),
        "chat": (True, "x"),
        "calibration": (Path("x"), ["a b c"], [], [[1, 2, 3]], [[1, 2], [3]], {"a": 1}, b"abc", 7, "", "x" * 5000),
        "out": ("", ".", "/", "/dev/null", "/proc/x", 7, "\x00", "a" * 300),
        "filter": ("x", lambda name, module: False, lambda name, module: name, 3),
        "plan": ("plan.json", {}, 3),
        "overwrite": ("yes", None),
        "resume": (None, False),
    }
    options = dict(options)
    for key in rng.sample(sorted(values), rng.choice((1, 1, 2))):
        options[key] = rng.choice((*values[key], rng.choice(NASTY)))
    return options
