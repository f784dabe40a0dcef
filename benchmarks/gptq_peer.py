"""llm-compressor's own GPTQ of a model, judged as slimrank's rows are: nats lost at the bytes of the whole checkpoint.

    python benchmarks/smollm2.py --out smollm2-off-grid --off-grid
    python benchmarks/gptq_peer.py smollm2-off-grid --peer PYTHON --calibration wiki.train.tokens \
        --text wiki.test.tokens --grids 4:64,3:64:memoryless_mse --out benchmarks/results/gptq-peer-smollm2.json

PYTHON is one that has llm-compressor, whose transformers may be another. It gets the windows that slimrank would
calibrate on, and rounds every linear of the blocks to BITS:GROUP, symmetric, with the scales of the observer that may
be named third, memoryless_minmax by default, and its other options as they come. The embedding is then rounded to
nearest in 8 bits, as in the rows of bytes.py. Bytes are those of the whole numbers, of a 16-bit scale a group (a row of
the embedding), and of everything else in 16 bits.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rows
import torch
from rows import Task
from safetensors.torch import load_file, save_file

import slimrank
from slimrank.calibrate import read_text
from slimrank.errors import SlimrankError
from slimrank.evaluate import Reference, perplexities
from slimrank.evaluate.results import text_json
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.model.load import Loaded
from slimrank.refine.ends import end_grid, nearest
from slimrank.rounding.grid import Grid
from slimrank.texts.reading import Reading, read_windows

PEER = """
import sys, llmcompressor, torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
source, windows, bits, group, observer, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
ids = load_file(windows)["ids"]
data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
args = QuantizationArgs(num_bits=int(bits), strategy="group", group_size=int(group), observer=observer)
recipe = GPTQModifier(config_groups={"all": QuantizationScheme(targets=["Linear"], weights=args)}, ignore=["lm_head"])
llmcompressor.oneshot(
    model=model, dataset=data, recipe=recipe, num_calibration_samples=len(ids), max_seq_length=ids.shape[1]
)
rounded = {name: module.weight for name, module in model.named_modules() if hasattr(module, "weight_scale")}
save_file({name: weight.detach().contiguous() for name, weight in rounded.items()}, target)
print("llmcompressor", llmcompressor.__version__)
"""


def peer_weights(options: argparse.Namespace, windows: torch.Tensor, grid: Grid, observer: str) -> tuple[Path, str]:
    """The file of the rounded weights by name, and the version of what made them.

    Raises:
        SlimrankError: if the peer failed.
    """
    ids, target = options.scratch / "windows.safetensors", options.scratch / "rounded.safetensors"
    save_file({"ids": windows.contiguous()}, ids)
    source = Path(options.model).resolve()
    command = [options.peer, "-c", PEER, source, ids, grid.bits, grid.group, observer, target]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=options.scratch)
    if done.returncode:
        lines = ["it said nothing", *done.stderr.strip().splitlines()]
        reason = next((line for line in reversed(lines) if "Error:" in line), lines[-1])
        raise SlimrankError(f"llm-compressor did not make {grid.bits} bits: {reason}.")
    return target, next(line for line in done.stdout.splitlines() if line.startswith("llmcompressor"))


@torch.no_grad()
def put(loaded: Loaded, weights: dict[str, torch.Tensor], grid: Grid) -> int:
    """Give a dense model the peer's weights and an embedding of 8 bits; returns the bytes of the whole checkpoint."""
    model = Compressible(Decoder(loaded.model))
    if missing := model.linears.keys() ^ weights.keys():
        raise SlimrankError(f"llm-compressor and slimrank differ in {', '.join(sorted(missing)[:3])}.")
    sizes = {id(parameter): 2 * parameter.numel() for parameter in loaded.model.parameters()}
    for name, module in {**model.linears, **model.ends}.items():
        own = grid if name in weights else end_grid(8)
        weight = module.get_parameter("weight")
        weight.copy_(weights[name] if name in weights else nearest(weight, own).weight)
        sizes[id(weight)] = weight.numel() * own.bits // 8 + 2 * own.groups(weight.shape[1]) * weight.shape[0]
    return sum(sizes.values())


def measure(options: argparse.Namespace, tasks: list[Task]) -> Iterator[Task]:
    """Each grid's row; the dense model goes first."""
    loaded = slimrank.load(options.model)
    reading = Reading(options.calibration, options.samples, options.window, options.seed)
    windows = read_windows(loaded, reading).calibration
    texts = [read_text(spec) for spec in options.text]
    judging: dict[str, Any] = {"max_windows": options.max_windows, "special_tokens": "text", "window": options.window}
    first = Reference(Decoder(loaded.model))
    dense = perplexities(loaded, texts, is_first=True, first=first, **judging)
    with tempfile.TemporaryDirectory() as folder:
        options.scratch = Path(folder)
        for task in tasks:
            bits, group, *observer = task["grid"].split(":")
            grid, started = Grid(int(bits), int(group)), time.perf_counter()
            path, version = peer_weights(options, windows, grid, *(observer or ["memoryless_minmax"]))
            seconds = round(time.perf_counter() - started, 1)
            rounded = slimrank.load(options.model)
            size = put(rounded, load_file(path), grid)
            found = perplexities(rounded, texts, first=first, **judging)
            judged = {rows.named(name): text_json(one, dense[name]) for name, one in found.items()}
            yield task | {"bytes": size, "made_by": version, "seconds": seconds, "texts": judged}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the dense model")
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="a Python that has llm-compressor")
    rows.add_windows(parser)
    parser.add_argument(
        "--grids", type=lambda text: text.split(","), default=["4:64"], help="BITS:GROUP or BITS:GROUP:OBSERVER, a,b"
    )
    rows.add_options(parser, jobs=False)
    options = parser.parse_args()
    with rows.one_sentence():
        rows.run(options, [{"grid": grid} for grid in options.grids], measure, rows.windows_settings(options))


if __name__ == "__main__":
    main()
