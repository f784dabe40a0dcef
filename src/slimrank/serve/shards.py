"""What one device computes of a fused linear whose parts are dense or compressed: no server.

On a GPU the kernels for few tokens compute it, by an operator that chooses them as it runs: a server compiles one graph
for all numbers of tokens, and captures it for each.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms import Embedding, Experts, has_bits
from slimrank.forms.dense import DenseShard
from slimrank.forms.outputs import Outputs
from slimrank.forms.shard import Shard, frozen
from slimrank.serve import few_tokens
from slimrank.serve.kernels.operator import any_tokens


class FusedParts(nn.Module):
    """The outputs of several linears that read one input, some rows of each, side by side, without biases.

    shards: by the linears' names, in order; a shard whose linear has a leader stands behind the leader's. The input
    factors are stacked into one matrix, whose product with the input is computed once.
    """

    def __init__(self, shards: Mapping[str, Shard], device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        names = list(shards)
        self.parts = nn.ModuleList(shards.values())
        self.leaders = [None if shard.leader is None else names.index(shard.leader) for shard in shards.values()]
        factors = [factor for shard in shards.values() if (factor := shard.take_input_factor()) is not None]
        self.sizes = [len(factor) for factor in factors]
        self.input_factor = frozen(torch.cat(factors)) if factors else None
        self.to(device)
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        self.kernels, self.places = self.find_kernels(torch.device(device), dtype), self.find_places()

    def find_kernels(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the operator computes this here; a warning says in a sentence why a GPU can't."""
        if device.type != few_tokens.DEVICE or any(part.outputs() is None for part in self.parts):  # type: ignore[operator]
            return False
        reason = few_tokens.unavailable(device, dtype)
        if reason:
            warnings.warn(reason, stacklevel=4)
        return reason is None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., inputs here) to y (..., outputs here)."""
        if self.kernels:
            return self.by_operator(x)
        read: list[Tensor] = []
        outputs, products = [], []
        if self.input_factor is not None:
            products += nn.functional.linear(x, self.input_factor).split(self.sizes, dim=-1)
        for part, leader in zip(self.parts, self.leaders, strict=True):
            read.append(x if part.reads_input else products.pop(0) if leader is None else read[leader])
            outputs.append(part(read[-1]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def by_operator(self, x: Tensor) -> Tensor:
        """`forward`: parts that share the stacked input factor in one call, each that gathers its inputs in its own."""
        outputs: list[Outputs] = [part.outputs() for part in self.parts]  # type: ignore[operator]
        found: dict[int, Tensor] = {}
        stacked = [at for at, part in enumerate(self.parts) if not part.reads_input]
        if stacked and self.input_factor is not None:
            own = [outputs[at] for at in stacked]
            y = _computed(x, self.input_factor, own, [self.places[at] for at in stacked])
            found = dict(zip(stacked, y.split([one.size for one in own], dim=-1), strict=True))
        for at, one in enumerate(outputs):
            if at not in found:
                found[at] = _computed(x, one.factor, [one], [(0, len(one.factor))])
        ordered = [found[at] for at in range(len(outputs))]
        return ordered[0] if len(ordered) == 1 else torch.cat(ordered, dim=-1)

    def find_places(self) -> list[tuple[int, int]]:
        """Where each part's input factor, or its leader's, starts in the stack, and how many rows it has."""
        found, sizes, end = list[tuple[int, int]](), list(self.sizes), 0
        for part, leader in zip(self.parts, self.leaders, strict=True):
            if part.reads_input or leader is not None:
                found.append((0, 0) if leader is None else found[leader])
                continue
            found.append((end, sizes.pop(0)))
            end += found[-1][1]
        return found


def _computed(x: Tensor, factor: Tensor, parts: list[Outputs], places: list[tuple[int, int]]) -> Tensor:
    numbers = [number for part, place in zip(parts, places, strict=True) for number in (part.copies, *place)]
    return any_tokens(
        x, factor, parts[0].order, parts[0].kept,
        [None if part.matrix is None else part.matrix.numbers for part in parts], [part.table for part in parts],
        [part.bias for part in parts], numbers,
    )  # fmt: skip


def require_served(layers: Mapping[str, dict[str, Any]]) -> None:
    """Warn that few-bit layers become floats; raise a SlimrankError for layers that vLLM has no place for.

    layers: the entries of a checkpoint's layers by name.
    """
    kinds = {Experts.form: "fused experts take no factors", Embedding.form: "embedding takes no whole numbers"}
    refused = next(((name, entry["form"]) for name, entry in layers.items() if entry["form"] in kinds), None)
    if refused is not None:
        raise SlimrankError(
            f"vLLM's {kinds[refused[1]]}, and {refused[0]} is compressed: serve with transformers, or make a dense "
            "checkpoint by slimrank export --to dense."
        )
    few = [name for name, entry in layers.items() if has_bits(entry)]
    if few:
        warnings.warn(
            f"vLLM multiplies by floats here: {few[0]} and {len(few) - 1} more layers of few bits are made floats on "
            "loading, and take as much memory as such.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Dense:
    """A dense part of a fused linear, of weight (out, in)."""

    weight: Tensor
    leader: None = None

    @property
    def out_features(self) -> int:
        """How many outputs it has."""
        return len(self.weight)

    def shard(self, rows: Tensor, columns: Tensor) -> Shard:
        """W[rows][:, columns], all of it an input factor."""
        return DenseShard(self.weight[rows][:, columns])
