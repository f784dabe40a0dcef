"""What one device computes of a fused linear whose parts are dense or compressed: pure torch, no server."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimrank.forms.shard import Shard, frozen


class FusedParts(nn.Module):
    """The outputs of several linears that read one input, some rows of each, side by side, without biases.

    shards: by the linears' names, in order; a shard whose linear has a leader stands behind the leader's. The input
    factors are stacked into one matrix, whose product with the input is computed once.
    """

    def __init__(self, shards: Mapping[str, Shard], device: torch.device, dtype: torch.dtype) -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., inputs here) to y (..., outputs here)."""
        read: list[Tensor] = []
        outputs, products = [], []
        if self.input_factor is not None:
            products += nn.functional.linear(x, self.input_factor).split(self.sizes, dim=-1)
        for part, leader in zip(self.parts, self.leaders, strict=True):
            read.append(x if part.reads_input else products.pop(0) if leader is None else read[leader])
            outputs.append(part(read[-1]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


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
        return _DenseShard(self.weight[rows][:, columns])


class _DenseShard(Shard):
    def forward(self, h: Tensor) -> Tensor:
        return h
