"""Speed of a random Llama in few bits beside the same in bfloat16: decoding one sequence, and a prefill of 512 tokens.

    python benchmarks/bits.py --threads 2 --out benchmarks/results/bits-cpu.json

The shape is serving.py's 1.45B model (hidden 2048, ffn 5632) with fewer blocks and a small vocabulary, so that the
linears of the blocks are what is measured. All models are in memory and take turns in one run; a row has medians, and
what they are of the dense model's in the same run. LAYERS: dense, or a form and its bits, such as dense-4 (groups of
--group inputs) and low_rank-8 (a scale a row), or low_rank for floats; "-floats" behind it multiplies its numbers by
their scales once and keeps floats, as a model that is made dense at load.
"""

import argparse

import random_forms
import rows
import torch
from random_forms import random_form, random_llama
from torch import nn

from slimrank.evaluate.speed import Asked, bench
from slimrank.forms import Dense, Form
from slimrank.forms.linear import is_linear
from slimrank.forms.quantized import groups_of
from slimrank.serve.optimize import optimize

LAYERS = "dense,dense-8,dense-4,low_rank,low_rank-8,low_rank-4"
DTYPE = torch.bfloat16


def in_bits(layer: Form, bits: int, group: int | None, floats: bool) -> Form:
    """The layer with random numbers of so many bits, or with floats that are such numbers times their scales."""
    layer.use_bits(bits, group)
    low = -(2 ** (bits - 1))
    for name, factor in layer.present_factors().items():
        shape = factor.out_features, factor.in_features
        scale = torch.full((shape[0], groups_of(shape[1], layer.per_scale)), 0.02 / -low, dtype=DTYPE)
        factor.store(torch.randint(low, -low, shape, dtype=torch.int8), scale)
        if floats:
            linear = nn.Linear(*shape[::-1], bias=False, device="meta")
            linear.weight = nn.Parameter(factor.matrix(), requires_grad=False)
            setattr(layer, name, linear)
    return layer


def model_of(options: argparse.Namespace, name: str) -> nn.Module:
    """The random model with layers of this name."""
    form, *rest = name.split("-")
    shape = {
        "hidden_size": options.hidden,
        "intermediate_size": options.ffn,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": 4096,
    }
    if not rest:
        return optimize(random_llama(form, options.keep, DTYPE, **shape))
    bits, floats = int(rest[0]), rest[1:] == ["floats"]
    model = random_llama("dense", options.keep, DTYPE, **shape)
    for path, linear in list(model.model.layers.named_modules(prefix="model.layers")):
        if is_linear(linear):
            out, inp = linear.weight.shape
            if form == "dense":
                layer: Form = Dense.empty(inp, out, 0, False, DTYPE).to_empty(device="cpu")
            else:
                layer = random_form(form, out, inp, options.keep, DTYPE)
            model.set_submodule(path, in_bits(layer, bits, options.group if bits < 8 else None, floats))
    return optimize(model.eval())


def measure(options: argparse.Namespace, tasks: list[rows.Task]):
    """A row a task; all are measured in turns."""
    names = [task["layers"] for task in tasks]
    found = bench(
        {name: model_of(options, name) for name in dict.fromkeys(["dense", *names])},
        Asked(options.tokens, (1,), options.steps, options.rounds),
        {},
    )
    dense = found.speeds[0]
    for task, speed in ((task, one) for task in tasks for one in found.speeds if one.name == task["layers"]):
        yield task | {
            "decode_ms": round(1000 * speed.decode[1], 3),
            "prefill_ms": round(1000 * speed.prefill, 2),
            "decode_gain": round(dense.decode[1] / speed.decode[1], 3),
            "prefill_gain": round(dense.prefill / speed.prefill, 3),
            "weights_mb": round(speed.weights / 1e6, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows.add_options(parser, jobs=False)
    parser.add_argument("--models", default=LAYERS, help="layers, see above")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--align", type=int, default=32, help="round ranks down to multiples of this")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--ffn", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    options = parser.parse_args()
    torch.manual_seed(0)
    random_forms.ALIGN = options.align
    settings = {
        key: getattr(options, key)
        for key in ("keep", "align", "group", "tokens", "hidden", "ffn", "layers", "vocabulary")
    }
    tasks = [{"layers": name, "threads": options.threads} for name in options.models.split(",")]
    with rows.one_sentence():
        rows.run(options, tasks, measure, settings | {"dtype": "bfloat16", "unit": "milliseconds"})


if __name__ == "__main__":
    main()
