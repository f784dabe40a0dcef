"""Whole numbers of 2, 3 or 4 bits in bytes."""

import torch
from torch import Tensor

MULTIPLE = 32
"""Rows are filled up with zeros to a multiple of so many numbers."""


def row_bytes(columns: int, bits: int) -> int:
    """The bytes of a packed row; numbers of 8 bits are not packed."""
    return columns if bits == 8 else -(-columns // MULTIPLE) * MULTIPLE * bits // 8


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Whole numbers (rows, n) from -2^(bits-1) to 2^(bits-1) - 1 as (rows, row_bytes) uint8; 8 bits stay int8.

    A row is a stream of bits, the lowest bit of each byte first: number i, plus 2^(b-1), is bits i b to i b + b - 1.
    """
    if bits == 8:
        return numbers.to(torch.int8)
    filled = torch.nn.functional.pad(numbers.to(torch.int8), (0, -numbers.shape[1] % MULTIPLE))
    eights = (filled + 2 ** (bits - 1)).unflatten(1, (-1, 8))
    stream = sum(eights[..., place].long() << bits * place for place in range(8))
    assert isinstance(stream, Tensor)
    return torch.stack([(stream >> 8 * byte & 255).to(torch.uint8) for byte in range(bits)], dim=-1).flatten(1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The numbers (rows, columns) int8 that were packed."""
    if bits == 8:
        return packed
    if bits == 4:  # nothing goes over a byte's end
        return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)[:, :columns].to(torch.int8) - 8
    parts = packed.unflatten(1, (-1, bits)).int()
    stream = sum(parts[..., byte] << 8 * byte for byte in range(bits))
    mask = 2**bits - 1
    numbers = torch.stack([(stream >> bits * place & mask).to(torch.int8) for place in range(8)], dim=-1)
    return numbers.flatten(1)[:, :columns] - 2 ** (bits - 1)
