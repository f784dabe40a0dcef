"""A set of indices, one bit each."""

import torch
from torch import Tensor

_WEIGHTS = tuple(1 << bit for bit in range(8))


def packed_bytes(count: int) -> int:
    """The bytes that `count` bits take."""
    return -(-count // 8)


def pack(mask: Tensor) -> Tensor:
    """The bits of a boolean mask (n,), lowest first, as (ceil(n / 8),) uint8."""
    padded = torch.nn.functional.pad(mask.to(torch.int32), (0, -len(mask) % 8))
    return (padded.view(-1, 8) * padded.new_tensor(_WEIGHTS)).sum(1).to(torch.uint8)


def places(mask: Tensor) -> Tensor:
    """For every index of a boolean mask (n,) its place, from 0, among those that are set or those that are not."""
    return torch.where(mask, mask.cumsum(0), (~mask).cumsum(0)) - 1


def unpack(packed: Tensor, count: int) -> Tensor:
    """The inverse of pack: a boolean mask (count,)."""
    bits = packed.to(torch.int32)[:, None] & torch.tensor(_WEIGHTS, dtype=torch.int32, device=packed.device)
    return bits.flatten()[:count] > 0
