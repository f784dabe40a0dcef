"""How fast compressed layers and models run on one GPU: dense, low_rank, pivoted and joint at keep 0.8, 0.6 and 0.4,
and layers of 8 and 4 bits, dense and low_rank at keep 0.5.

    PYTHONPATH=src python benchmarks/gpu.py --out benchmarks/results/gpu.json
    TRITON_INTERPRET=1 python benchmarks/gpu.py --device cpu --tiny --out tiny.json  # all but CUDA's paths

Needs a GPU, torch, transformers, Triton and pydantic, and nothing to be installed. A row is written as soon as it is
measured; after --minutes no other row is begun, and the same command goes on with those that are left. Layers and
units are timed in CUDA graphs over several sets of weights that no cache holds, models in CUDA graphs with and without
torch.compile; what takes turns is in one row, in microseconds. Before a row is timed its outputs are compared with
those of float32. `bound` is the bytes of the dense layers over the form's: what fewer bytes allow where reading them is
the bound, as for few tokens; of floats also what fewer operations allow else.
"""

import argparse
import copy
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import random_forms
import rows
import torch
from gpu_timing import captured, medians, require_close
from random_forms import random_form, random_group, random_llama, random_numbers
from torch import nn
from transformers import StaticCache

from slimrank.evaluate.speed import read_numbers
from slimrank.forms import link
from slimrank.forms.quantized import QuantizedLinear
from slimrank.serve import few_tokens
from slimrank.serve.kernels.blocks import MOST
from slimrank.serve.optimize import optimize
from slimrank.serve.packed import Packed, PackedPart

KEEPS = (0.6, 0.4, 0.8)
FEW_BITS = ("dense-8", "dense-4", "low_rank-8", "low_rank-4")
TOLERANCE = 0.03
LAYERS = {  # one input: the outputs of each member
    "4096x4096": (4096, (4096,)),
    "11008x4096": (4096, (11008,)),
    "4096x11008": (11008, (4096,)),
    "2048x2048": (2048, (2048,)),
    "5632x2048": (2048, (5632,)),
    "3 of 4096x4096": (4096, (4096,) * 3),
    "2 of 11008x4096": (4096, (11008,) * 2),
}
MODELS = {
    "7B, 8 blocks": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 8,
                     "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096},
    "SmolLM2-135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                     "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 4096},
}  # fmt: skip
TINY_LAYERS = {"64x48": (48, (64,)), "3 of 48x48": (48, (48,) * 3)}
TINY_MODELS = {
    "tiny": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "vocab_size": 96, "max_position_embeddings": 4096}
}  # fmt: skip


def tasks(args: argparse.Namespace) -> list[rows.Task]:
    """Every row's keys, the most telling first: layers, of few bits too, then models without and with torch.compile."""
    tokens = (1, 4, 80) if args.tiny else (1, 16, 64, 512, 2048, 4)
    phases = [("decode", 1), ("prefill", 80)] if args.tiny else PHASES
    layers = [
        {"kind": "layer", "shape": shape, "keep": keep, "tokens": count}
        for keep, count, shape in itertools.product(KEEPS, tokens, args.layers)
    ]
    bits = [
        {"kind": "bits", "shape": shape, "keep": 0.5, "tokens": count}
        for count, shape in itertools.product(tokens, args.layers)
    ]
    models = [
        {"kind": "model", "shape": shape, "keep": keep, "phase": phase, "size": size, "compiled": compiled}
        for compiled, shape, keep, (phase, size) in itertools.product((False, True), args.models, KEEPS, phases)
    ]
    return [task for task in layers + bits + models if args.kind in ("all", task["kind"])]


PHASES = [("decode", 1), ("prefill", 2048), ("decode", 32), ("decode", 4), ("prefill", 512)]
"""decode: `size` sequences a step; prefill: `size` tokens."""


def measure(args: argparse.Namespace, missing: list[rows.Task]) -> Iterator[rows.Task | str]:
    """The rows, until the time is over."""
    end, held = time.monotonic() + 60 * args.minutes, Models(args)
    for task in missing:
        if time.monotonic() > end:
            return
        try:
            with torch.inference_mode():
                yield task | (held.row(task) if task["kind"] == "model" else layer_row(args, task))
        except Exception as error:  # whatever fails is a sentence in the row's place, and the others go on
            yield f"{task}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


class Unit(nn.Module):
    """Layers that read one input, as `optimize` leaves them in a model: packed, and on a GPU with the kernels."""

    def __init__(self, layers: list[nn.Module], device: torch.device) -> None:
        super().__init__()
        self.layers, plain = nn.ModuleList(layers), [one for one in layers if isinstance(one, nn.Linear)]
        for place in ("down", "pivots", "others"):
            holders = [one for one in layers if isinstance(getattr(one, place, None), nn.Linear)]
            joint = len({getattr(one, "leader", None) for one in layers}) > 1
            if len(holders) > 1 and (place != "others" or joint):
                packed = Packed([getattr(one, place) for one in holders])
                for index, one in enumerate(holders):
                    setattr(one, place, PackedPart(packed, index))
        for unit in [] if plain else few_tokens.units(self, [layers]):
            few_tokens.serve(unit, device)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Every layer's outputs."""
        return [one(x) for one in self.layers]


def build(form: str, shape: tuple[int, tuple[int, ...]], keep: float, args: argparse.Namespace) -> Unit:
    """A unit of random weights; the dense one is one stacked linear."""
    inp, sizes = shape
    if form == "dense":
        linear = nn.Linear(inp, sum(sizes), bias=False, dtype=args.dtype, device=args.device)
        nn.init.normal_(linear.weight, std=0.02)
        return Unit([linear], args.device)
    if form == "joint":
        layers = random_group(sizes, inp, keep, args.dtype, args.device)
        holder = nn.ModuleDict({"leader": layers[0]} | {str(at): one for at, one in enumerate(layers[1:])})
        link(holder)
        return Unit(layers, args.device)
    kind, _, bits = form.partition("-")
    layers = [random_form(kind, out, inp, keep, args.dtype, args.device) for out in sizes]
    return Unit([random_numbers(one, int(bits)) for one in layers] if bits else layers, args.device)


def layer_row(args: argparse.Namespace, task: rows.Task) -> dict[str, Any]:
    """Every form's time of one layer or unit."""
    shape, count = args.layers[task["shape"]], task["tokens"]
    floats = ("low_rank", "pivoted", *(("joint",) if len(shape[1]) > 1 else ()))
    forms = ["dense", *(FEW_BITS if task["kind"] == "bits" else floats)]
    bytes_of = shape[0] * sum(shape[1]) * args.dtype.itemsize
    sets = max(2, min(8 if count <= MOST else 3, -(-args.spread // bytes_of)))
    inputs = [torch.randn(count, shape[0], dtype=args.dtype, device=args.device) for _ in range(sets)]
    units = {form: [build(form, shape, task["keep"], args) for _ in range(sets)] for form in forms}
    for form, (one, *_) in units.items():
        exact = plain(one)(inputs[0].float())
        require_close(f"{form} of {task}", torch.cat(one(inputs[0]), -1), torch.cat(exact, -1), TOLERANCE)
    calls = {}
    for form, some in units.items():
        by_compiler = count > MOST and form != "dense"
        run = [torch.compile(one, dynamic=False) if by_compiler else one for one in some]
        pairs = list(zip(run, inputs, strict=True))
        calls[form] = captured([lambda one=one, x=x: one(x) for one, x in pairs], args.device)
    found = medians(calls, dict.fromkeys(forms, sets), args.rounds, args.device)
    sizes = {form: matrix_bytes(some[0]) for form, some in units.items()}
    torch.compiler.reset()
    return found | gains(found, sizes) | {"sets": sets, "bytes": sizes}


def matrix_bytes(unit: Unit) -> int:
    """Of all matrices, and of their scales where they are of few bits."""
    whole = [one for one in unit.modules() if isinstance(one, QuantizedLinear)]
    return sum(p.nbytes for p in unit.parameters()) + sum(one.weight.nbytes + one.scale.nbytes for one in whole)


def plain(unit: Unit) -> Unit:
    """The same in float32, by its own layers alone."""
    twin = copy.deepcopy(unit)
    for layer in twin.modules():
        vars(layer).pop("forward", None)
    return twin.float()


def gains(found: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Each form's speed over dense, and the bound."""
    forms = [form for form in found if form != "dense"]
    return {
        "gain": {form: round(found["dense"] / found[form], 3) for form in forms},
        "bound": {form: round(sizes["dense"] / sizes[form], 3) for form in forms},
    }


class Models:
    """The models of the rows that are measured, those of one shape and keep at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.key, self.models = args, None, {}
        self.numbers: dict[str, dict[str, int]] = {}

    def row(self, task: rows.Task) -> dict[str, Any]:
        """Every form's time of a step of decoding, or a prefill."""
        key = task["shape"], task["keep"]
        if key != self.key:
            self.key, self.models = key, {}
            self.models = {form: self.build(form, *key) for form in ("dense", "low_rank", "pivoted", "joint")}
        calls = {form: self.call(model, task) for form, model in self.models.items()}
        # a step of decoding fills a place of the cache, so its rounds are counted; see `room`
        found = medians(calls, dict.fromkeys(calls, 1), self.args.rounds, self.args.device)
        torch.compiler.reset()
        return found | gains(found, self.numbers[task["phase"]])

    def build(self, form: str, shape: str, keep: float) -> nn.Module:
        """A random model, optimized, after its logits have been compared with those of the layers in float32."""
        args = self.args
        model = random_llama(form, keep, args.dtype, str(args.device), **args.models[shape])
        for phase, skipped in (("decode", 0), ("prefill", model.lm_head.weight.numel())):
            self.numbers.setdefault(phase, {})[form] = read_numbers(model) - skipped
        ids = self.ids(model, 1, 80)
        exact = [copy.deepcopy(model).float()(some).logits for some in (ids, ids[:, :4])]
        optimize(model)
        for some, one in zip((ids, ids[:, :4]), exact, strict=True):
            require_close(f"{form} of {shape} at {keep}", model(some).logits, one, TOLERANCE)
        return model

    def ids(self, model: Any, batch: int, tokens: int) -> torch.Tensor:
        return torch.randint(0, model.config.vocab_size, (batch, tokens), device=self.args.device)

    def call(self, model: Any, task: rows.Task) -> Any:
        """What a round runs."""
        run = torch.compile(model.forward, fullgraph=True, dynamic=False) if task["compiled"] else model.forward
        if task["phase"] == "prefill":
            ids = self.ids(model, 1, task["size"])
            return captured([lambda: run(ids, use_cache=False, logits_to_keep=1).logits], self.args.device)
        context, room = (8, 64) if self.args.tiny else (128, 256)
        cache = StaticCache(config=model.config, max_cache_len=context + room)
        model(self.ids(model, task["size"], context), past_key_values=cache, logits_to_keep=1)
        token, position = self.ids(model, task["size"], 1), torch.tensor([context], device=self.args.device)
        assert self.args.rounds + 8 < room, "a step of decoding would find no place in the cache"
        return captured(
            [lambda: run(token, past_key_values=cache, cache_position=position, logits_to_keep=1).logits],
            self.args.device,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows.add_options(parser, jobs=False)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--kind", default="all", choices=["all", "layer", "bits", "model"])
    parser.add_argument("--minutes", type=float, default=6, help="begin no row after so many")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--align", type=int, default=16, help="round ranks down to multiples of this")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script out")
    args = parser.parse_args()
    random_forms.ALIGN = 1 if args.tiny else args.align
    torch.manual_seed(0)
    named, args.dtype = args.dtype, getattr(torch, args.dtype)
    args.layers, args.models = (TINY_LAYERS, TINY_MODELS) if args.tiny else (LAYERS, MODELS)
    args.spread = 1000 if args.tiny else 256 * 2**20
    reason = few_tokens.unavailable(args.device, args.dtype)
    if args.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        reason = "On a CPU only TRITON_INTERPRET=1 runs the kernels: compressed layers run without them."
    if reason:
        print(reason, file=sys.stderr)
    few_tokens.DEVICE = "none" if reason else args.device.type
    settings = {"dtype": named, "align": random_forms.ALIGN, "rounds": args.rounds, "tiny": args.tiny,
                "kernels": reason is None, "unit": "microseconds"}  # fmt: skip
    with rows.one_sentence():
        rows.run(args, tasks(args), measure, settings)


if __name__ == "__main__":
    main()
