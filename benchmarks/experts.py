"""Milliseconds of one layer of experts: the fused module of transformers, and its stacks of factors, in turns.

    python benchmarks/experts.py --threads 2 --out benchmarks/results/experts-cpu.json

The shape is a layer of Qwen3-30B-A3B with half of its experts: width 2048, expert width 768, 64 experts, 8 a token.
The factors are random and of one size for all experts, at the share `--keep` of the numbers; the dense module runs by
each implementation that transformers has for the device, and the fastest is what the stacks are compared with. Medians.
Beside factors of each expert's own, `shared_input` has one input factor for all experts' gate and up, their down being
pivoted, and `shared` also one output factor for down.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import rows
import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from slimrank.factorize import FACTORIZERS
from slimrank.forms import FORMS, Experts
from slimrank.forms.experts import Stack, layout_of
from slimrank.forms.shared import SIDES
from slimrank.model.load import DTYPES

DENSE = ("eager", "grouped_mm", "batched_mm")
FORMS_OF = {  # of gate and up, and of down
    "low_rank": ("low_rank", "low_rank"),
    "pivoted": ("pivoted", "pivoted"),
    "shared_input": ("input", "pivoted"),
    "shared": ("input", "output"),
}


def main() -> None:
    """Measure a row for each number of tokens and form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,512")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--experts", type=rows.count, default=64)
    parser.add_argument("--width", type=rows.count, default=2048)
    parser.add_argument("--inner", type=rows.count, default=768)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=rows.count, default=7)
    parser.add_argument(
        "--processor-time", action="store_true", help="the process's seconds, for one thread of a busy machine"
    )
    rows.add_options(parser, jobs=False)
    options = parser.parse_args()
    names = ("keep", "experts", "width", "inner", "dtype", "rounds", "processor_time")
    tasks = [{"tokens": int(number)} for number in options.tokens.split(",")]
    rows.run(options, tasks, measure, {name: getattr(options, name) for name in names})


@torch.inference_mode()
def measure(options: argparse.Namespace, tasks: list[rows.Task]) -> Iterator[rows.Task]:
    """The row of each number of tokens: milliseconds by module, and what the stacks gain."""
    torch.manual_seed(0)
    dense = fused(options)
    layers: dict[str, nn.Module] = {name: stacks(dense, forms, options.keep) for name, forms in FORMS_OF.items()}
    for task in tasks:
        given = inputs(task["tokens"], options)
        times: dict[str, list[float]] = {}
        for _ in range(options.rounds + 1):
            for name in DENSE[: 2 if task["tokens"] > 64 else 3]:  # a copy of every token's weights takes much memory
                dense.config._experts_implementation = name
                times.setdefault(name, []).append(seconds(dense, given, options))
            for name, layer in layers.items():
                times.setdefault(name, []).append(seconds(layer, given, options))
        found = {name: round(1000 * statistics.median(own[1:]), 3) for name, own in times.items()}
        fastest = min(own for name, own in found.items() if name in DENSE)
        gains = {f"{name}_gain": round(fastest / found[name], 3) for name in layers}
        yield task | found | gains


def fused(options: argparse.Namespace) -> Any:
    """Random fused experts."""
    config = Qwen3MoeConfig(
        hidden_size=options.width, moe_intermediate_size=options.inner, num_experts=options.experts,
        num_experts_per_tok=8,
    )  # fmt: skip
    module = Qwen3MoeExperts(config).to(DTYPES[options.dtype]).to(options.device)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return module


def stacks(dense: nn.Module, forms: tuple[str, str], keep: float) -> Experts:
    """Random experts, their two matrices of these forms and of the share `keep` of the numbers."""
    layout = layout_of(dense)
    assert layout is not None
    made = []
    for role, form in zip(layout.roles, forms, strict=True):
        matrix = dense.get_parameter(role)
        rows_, columns = matrix.shape[1:]
        make = shared if form in SIDES else alone
        made.append(Stack.of(make(form, layout.experts, (rows_, columns), keep, matrix), (rows_, columns)))
    return Experts(dense, layout, *made)


def alone(form: str, experts: int, shape: tuple[int, int], keep: float, like: Tensor) -> list[nn.Module]:
    """The same random factors for every expert."""
    (m, n), made = shape, FACTORIZERS[form].model_validate({"name": form})
    rank = made.rank_for([shape], keep * m * n)
    left, right = (torch.randn(size, device=like.device) for size in ((m, rank), (rank, n)))
    return [FORMS[form].from_low_rank(left / rank**0.5, right * 0.02).to(like.dtype)] * experts


def shared(side: str, experts: int, shape: tuple[int, int], keep: float, like: Tensor) -> list[nn.Module]:
    """Random factors, of which one is every expert's."""
    m, n = shape
    rank = int(keep * experts * m * n / (experts * m + n if side == "input" else m + experts * n))
    factors = {"down": torch.randn(rank, n) * 0.02, "up": torch.randn(m, rank) / rank**0.5}
    kind = SIDES[side]
    layers: list[nn.Module] = [kind.member(factors, None, "0.matrix" if e else None) for e in range(experts)]
    return [layer.to(like.device, like.dtype) for layer in layers]


def inputs(tokens: int, options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, and 8 random experts of each token with their weights."""
    hidden = torch.randn(tokens, options.width, dtype=DTYPES[options.dtype], device=options.device)
    scores = torch.randn(tokens, options.experts, device=options.device)
    weights, index = scores.softmax(-1).topk(8, dim=-1)
    return hidden, index, weights.to(hidden.dtype)


def seconds(layer: nn.Module, given: tuple[Tensor, Tensor, Tensor], options: argparse.Namespace) -> float:
    """Of one call."""
    calls = 1 if len(given[0]) > 64 else 5
    clock = time.process_time if options.processor_time else time.perf_counter
    synchronize(options.device)
    started = clock()
    for _ in range(calls):
        layer(*given)
    synchronize(options.device)
    return (clock() - started) / calls


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
