"""Compress a random Llama of a given shape in a process of its own, and print stage times and peak memory as JSON.

    python benchmarks/scale.py --shape 1.45b --samples 8 --window 256 --memory 1.5GiB --out scale.json

The recipe, slimrank unless another is named, goes without the refiners that train the whole model. The checkpoint is
made at --place, block by block, in bf16, and left there for the next time; random words in the embedded tokenizer's
vocabulary are the text. Memory is sampled from /proc: the process's anonymous memory, with CUDA the allocator's peak.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from slimrank import demo, load_recipe
from slimrank.runtime.versions import versions

SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
    "tiny-deep": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4},
    "narrow": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 8},
    "narrow-deep": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 8},
    "1.45b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
MIB = 2**20


def random_tensors(config, generator):
    """(shard, name, tensor) of a Llama, a block at a time."""
    width, inner = config.hidden_size, config.intermediate_size

    def matrix(*shape):
        return (0.02 * torch.randn(*shape, generator=generator)).to(torch.bfloat16)

    yield 0, "model.embed_tokens.weight", matrix(config.vocab_size, width)
    for block in range(config.num_hidden_layers):
        name = f"model.layers.{block}."
        for one in "qkvo":
            yield block + 1, f"{name}self_attn.{one}_proj.weight", matrix(width, width)
        for one in ("gate", "up"):
            yield block + 1, f"{name}mlp.{one}_proj.weight", matrix(inner, width)
        yield block + 1, f"{name}mlp.down_proj.weight", matrix(width, inner)
        for one in ("input", "post_attention"):
            yield block + 1, f"{name}{one}_layernorm.weight", torch.ones(width, dtype=torch.bfloat16)
    last = config.num_hidden_layers + 1
    yield last, "model.norm.weight", torch.ones(width, dtype=torch.bfloat16)
    yield last, "lm_head.weight", matrix(config.vocab_size, width)


def make_checkpoint(folder, shape, blocks):
    """The random model, unless it is there."""
    layers = {"num_hidden_layers": blocks} if blocks else {}
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, bos_token_id=0, **{**SHAPES[shape], **layers})
    if (folder / "model.safetensors.index.json").is_file():
        return config
    folder.mkdir(parents=True, exist_ok=True)
    shards, generator = {}, torch.Generator().manual_seed(0)
    places, number = {}, 0

    def flush():
        if shards:
            save_file(shards, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
            shards.clear()

    for shard, name, tensor in random_tensors(config, generator):
        if shard != number:
            flush()
            number = shard
        shards[name] = tensor
        places[name] = f"model-{number:05d}.safetensors"
    flush()
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    for file in demo.MODEL.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return config


def make_text(path, tokens):
    """Random words, about 16 characters for every token that will be asked for."""
    words = sorted(set(re.findall(r"[a-z]+", demo.text("calibration").read_text(encoding="utf-8").lower())))
    rng, parts, length = random.Random(0), [], 0
    while length < 20 * tokens:
        parts.append(rng.choice(words))
        length += len(parts[-1]) + 1
    path.write_text(" ".join(parts), encoding="utf-8")


def bytes_in(folder):
    """Bytes on disk; files may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def watch(process, progress):
    """Peaks of anonymous and resident memory, and of the progress folder, in bytes, until the process ends."""
    peaks, looked = {"anonymous": 0, "resident": 0, "progress_on_disk": 0}, 0.0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            text = status.read_text()
        except OSError:
            break
        for key, field in (("anonymous", "RssAnon"), ("resident", "VmRSS")):
            found = re.search(rf"{field}:\s+(\d+) kB", text)
            peaks[key] = max(peaks[key], int(found[1]) * 1024 if found else 0)
        if time.monotonic() - looked > 5:
            looked = time.monotonic()
            peaks["progress_on_disk"] = max(peaks["progress_on_disk"], bytes_in(progress))
        time.sleep(0.02)
    process.wait()
    return peaks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.45b")
    parser.add_argument("--blocks", type=int, help="Instead of the shape's own number.")
    parser.add_argument("--place", type=Path, default=Path("scale-work"))
    parser.add_argument("--recipe", default="slimrank")
    parser.add_argument("--no-refine", action="store_true", help="Leave every refiner out.")
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 elsewhere.")
    parser.add_argument("--memory")
    parser.add_argument("--resume", action="store_true", help="Go on; peaks and seconds are the last process's alone.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    dense = args.place / (f"{args.shape}-{args.blocks}" if args.blocks else args.shape)
    config = make_checkpoint(dense, args.shape, args.blocks)
    text = args.place / f"text-{args.samples * args.window}.txt"
    if not text.is_file():
        make_text(text, args.samples * args.window)
    refiners = [] if args.no_refine else load_recipe(args.recipe).refine
    closed = [step.model_dump(mode="json") for step in refiners if not step.whole_model]
    out = args.place / f"{dense.name}-out"
    command = [
        *(sys.executable, "-m", "slimrank", "compress", str(dense), "--out", str(out), "--overwrite"),
        "--resume" if args.resume else "--fresh",
        *("--recipe", args.recipe, "--set", f"refine={json.dumps(closed)}", "--keep", str(args.keep)),
        *("--calibration", str(text), "--samples", str(args.samples), "--window", str(args.window)),
        *("--device", args.device, "--dtype", dtype, *(("--memory", args.memory) if args.memory else ())),
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks = watch(process, out.with_name(f".{out.name}.progress"))
    seconds = time.perf_counter() - started
    record = {
        "settings": {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("out", "place")
        }
        | {"dtype": dtype, "threads": torch.get_num_threads()},
        "config": {key: getattr(config, key) for key in SHAPES["tiny"]},
        "status": process.returncode,
        "seconds": round(seconds, 1),
        "mib": {key: round(value / MIB) for key, value in peaks.items()},
        "checkpoint_mib": round(bytes_in(dense) / MIB),
        "versions": versions(),
    }
    if process.returncode == 0:
        account = json.loads((out / "slimrank" / "account.json").read_text())
        record["stages"] = {stage: round(value, 1) for stage, value in account["seconds"].items()}
        if args.device != "cpu":
            record["gpu"] = {"name": torch.cuda.get_device_name(), "mib": round(account["memory"] / MIB)}
    print(json.dumps(record, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
