"""llama.cpp's own quantisations of a model, judged as slimrank's are: nats lost at the bytes of the whole checkpoint.

    python benchmarks/smollm2.py --out smollm2-off-grid --off-grid
    python benchmarks/bytes_peers.py smollm2-off-grid --text wiki.test.tokens --out benchmarks/results/bytes-peers.json

The model is written to a GGUF file in the dtype that it is stored in, llama.cpp makes each kind of it, and transformers
loads that file, so that one judge sees all. Needs llama-cpp-python in this Python, or in another one: --llama PYTHON.
An importance matrix, which llama.cpp's quantiser can be given, is not. A KIND is the end of one of its LLAMA_FTYPE
names; a folder or file in its place is a checkpoint, judged beside them.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import rows
from gguf import GGUFReader

from slimrank.errors import SlimrankError
from slimrank.evaluate import evaluate_models, weight_bytes
from slimrank.evaluate.results import text_json
from slimrank.model.load import load
from slimrank.serve.export.gguf import write_gguf

KINDS = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,Q3_K_M,Q2_K"
MAKE = """
import sys, llama_cpp
source, target, kind, threads = sys.argv[1:]
asked = llama_cpp.llama_model_quantize_default_params()
asked.ftype, asked.nthread = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind), int(threads)
print("llama-cpp-python", llama_cpp.__version__)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), asked))
"""


def made(options: argparse.Namespace, source: Path, kind: str) -> tuple[Path, str]:
    """The file of a kind, and the version of what made it."""
    target = source.with_name(f"{kind}.gguf")
    command = [options.llama, "-c", MAKE, str(source), str(target), kind, str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not target.is_file():
        reason = done.stderr.strip().splitlines()[-1:] or ["no file came"]
        raise SlimrankError(f"llama.cpp did not make {kind}: {reason[0]}.")
    return target, next(line for line in done.stdout.splitlines() if line.startswith("llama-cpp-python"))


def measure(options: argparse.Namespace, tasks: list[rows.Task]) -> Iterator[rows.Task]:
    """Each kind's row; the dense model goes first, and once."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        source = Path(folder) / "source.gguf"
        write_gguf(load(options.model), source)
        there: dict[str, tuple[Path, str]] = {}
        for task in tasks:
            given = Path(task["kind"])
            there[task["kind"]] = (given, "") if given.exists() else made(options, source, task["kind"])
        source.unlink()
        models = {"dense": options.model} | {kind: str(path) for kind, (path, _) in there.items()}
        first, *others = evaluate_models(
            models, options.text, window=options.window, max_windows=options.max_windows, special_tokens="none"
        )
        for task, result in zip(tasks, others, strict=True):
            path, version = there[task["kind"]]
            texts = {rows.named(text): text_json(one, first.texts[text]) for text, one in result.texts.items()}
            size = weight_bytes(path) if path.is_dir() else path.stat().st_size
            sizes = {"bytes": size, "tensor_bytes": size if path.is_dir() else tensor_bytes(path)}
            yield {"kind": rows.named(task["kind"]), **sizes, "made_by": version, "texts": texts}


def tensor_bytes(path: Path) -> int:
    """The bytes of a GGUF file's tensors, without the tokenizer that is in it too."""
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)


def there(row: dict[str, object], task: rows.Task) -> bool:
    """Whether the row is the kind's, or that of a checkpoint of this name."""
    return row["kind"] == rows.named(task["kind"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the dense model")
    rows.add_options(parser, jobs=False)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--kinds", default=KINDS)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-windows", type=int, default=64)
    parser.add_argument("--llama", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--scratch", help="folder for the files that are made")
    options = parser.parse_args()
    with rows.one_sentence():
        settings = {
            "model": rows.named(options.model),
            "window": options.window,
            "max_windows": options.max_windows,
            "texts": [rows.described(rows.read_text(text)) for text in options.text],
        }
        rows.run(options, [{"kind": kind} for kind in options.kinds.split(",")], measure, settings, there)


if __name__ == "__main__":
    main()
