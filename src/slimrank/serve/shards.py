"""What one device computes of a fused linear whose parts are dense or compressed: no server.

On a GPU the kernels for few tokens compute it, by an operator that chooses them as it runs: a server compiles one graph
for all numbers of tokens, and captures it for each. Factors of few bits have products of their own.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms import Experts
from slimrank.forms.dense import DenseShard
from slimrank.forms.linear import linear_with
from slimrank.forms.outputs import Outputs
from slimrank.forms.quantized import STORED, QuantizedLinear, picked
from slimrank.forms.shard import Shard
from slimrank.serve import few_tokens
from slimrank.serve.few_bits import StoredProduct
from slimrank.serve.kernels.operator import any_tokens


class FusedParts(nn.Module):
    """The outputs of several linears that read one input, some rows of each, side by side, without biases.

    shards: by the linears' names, in order; a shard whose linear has a leader stands behind the leader's. Input factors
    that are alike, which are floats, or of one width and group, are stacked into one matrix, whose product with the
    input is computed once. few_bits: the server's product with a matrix of few bits.
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        device: torch.device | str,
        dtype: torch.dtype,
        few_bits: Callable[[QuantizedLinear], nn.Module] = StoredProduct,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(shards.values())
        alike: dict[tuple[int | None, int | None], list[Any]] = {}
        places = dict[str, tuple[int, int]]()
        for name, shard in shards.items():
            factor = shard.take_input_factor()
            if factor is not None:
                kind = getattr(factor, "bits", None), getattr(factor, "group", None)
                own = alike.setdefault(kind, [])
                places[name] = list(alike).index(kind), len(own)
                own.append(factor)
        self.places = [places.get(shard.leader or name) for name, shard in shards.items()]
        self.sizes = [[factor.out_features for factor in factors] for factors in alike.values()]
        self.stacks = nn.ModuleList(_stacked(factors) for factors in alike.values())
        self.to(device=device, dtype=dtype)
        for name, module in list(self.named_modules()):
            if isinstance(module, QuantizedLinear):
                self.set_submodule(name, few_bits(module))
        self.kernels, self.ranges = self.find_kernels(torch.device(device), dtype), self.find_ranges()

    def find_kernels(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the operator computes this here; a warning says in a sentence why a GPU can't."""
        floats = all(isinstance(stack, nn.Linear) for stack in self.stacks)
        if device.type != few_tokens.DEVICE or not floats or any(part.outputs() is None for part in self.parts):  # type: ignore[operator]
            return False
        reason = few_tokens.unavailable(device, dtype)
        if reason:
            warnings.warn(reason, stacklevel=4)
        return reason is None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., inputs here) to y (..., outputs here)."""
        if self.kernels:
            return self.by_operator(x)
        products = [stack(x).split(sizes, dim=-1) for stack, sizes in zip(self.stacks, self.sizes, strict=True)]
        outputs = [
            part(x if place is None else products[place[0]][place[1]])
            for part, place in zip(self.parts, self.places, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def by_operator(self, x: Tensor) -> Tensor:
        """`forward`: parts that share the stacked input factor in one call, each that gathers its inputs in its own."""
        outputs: list[Outputs] = [part.outputs() for part in self.parts]  # type: ignore[operator]
        found: dict[int, Tensor] = {}
        stacked = [at for at, place in enumerate(self.places) if place is not None]
        if stacked:
            own = [outputs[at] for at in stacked]
            y = _computed(x, self.stacks[0].weight, own, [self.ranges[at] for at in stacked])  # type: ignore[arg-type]
            found = dict(zip(stacked, y.split([one.size for one in own], dim=-1), strict=True))
        for at, one in enumerate(outputs):
            if at not in found:
                found[at] = _computed(x, one.factor.weight, [one], [(0, len(one.factor.weight))])
        ordered = [found[at] for at in range(len(outputs))]
        return ordered[0] if len(ordered) == 1 else torch.cat(ordered, dim=-1)

    def find_ranges(self) -> list[tuple[int, int]]:
        """Where each part's input factor, or its leader's, starts in its stack, and how many rows it has."""
        return [
            (0, 0) if place is None else (sum(self.sizes[place[0]][: place[1]]), self.sizes[place[0]][place[1]])
            for place in self.places
        ]


def _stacked(factors: Sequence[Any]) -> nn.Module:
    """Matrices of one width and kind, one above the other."""
    first = factors[0]
    if len(factors) == 1:
        return first
    if isinstance(first, QuantizedLinear):
        weight, scale = (torch.cat([getattr(factor, name) for factor in factors]) for name in STORED)
        return QuantizedLinear.of(weight, scale, first.in_features, first.bits, first.group)
    return linear_with(torch.cat([factor.weight for factor in factors]))


def _computed(x: Tensor, factor: Tensor, parts: list[Outputs], places: list[tuple[int, int]]) -> Tensor:
    numbers = [number for part, place in zip(parts, places, strict=True) for number in (part.copies, *place)]
    return any_tokens(
        x, factor, parts[0].order, parts[0].kept,
        [None if part.matrix is None else part.matrix.numbers for part in parts], [part.table for part in parts],
        [part.bias for part in parts], numbers,
    )  # fmt: skip


def require_served(layers: Mapping[str, dict[str, Any]]) -> None:
    """Raise a SlimrankError for layers that vLLM has no place for.

    layers: the entries of a checkpoint's layers by name.
    """
    refused = next((name for name, entry in layers.items() if entry["form"] == Experts.form), None)
    if refused is not None:
        raise SlimrankError(
            f"vLLM's fused experts take no factors, and {refused} is compressed: serve with transformers, or make a "
            "dense checkpoint by slimrank export --to dense."
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
        return DenseShard(picked(linear_with(self.weight), rows, columns))
