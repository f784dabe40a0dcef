"""Tiles of a matrix as the kernels multiply by them: floats, or whole numbers of few bits and their scales.

Numbers are laid out as numerics.packing says. A byte is loaded once, 16 at a time where rows allow it, and its numbers
are put side by side in registers; of 3 bits, which go over bytes' ends, every number loads its own two bytes.
"""

import triton
import triton.language as tl


@triton.jit
def numbers(matrix, row, inside, step, width, column0, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """(ROWS, BLOCK) of M, as they are stored: its rows, and the columns from `column0` on, which BLOCK divides.

    A row of floats or of 8 bits may be read up to `width`, one that is packed up to the next one, `step` behind it.
    """
    at = matrix + row[:, None] * step
    if BITS == 3:
        bit = 3 * (column0 + tl.arange(0, BLOCK))
        byte = (bit >> 3)[None, :]
        low = tl.load(at + byte, mask=inside[:, None] & (byte < step), other=0).to(tl.int32)
        high = tl.load(at + byte + 1, mask=inside[:, None] & (byte + 1 < step), other=0).to(tl.int32)
        found = (((high << 8 | low) >> (bit & 7)[None, :]) & 7) - 4
    elif BITS == 4:
        byte = tl.multiple_of(column0 // 2, BLOCK // 2) + tl.arange(0, BLOCK // 2)
        held = tl.load(at + byte[None, :], mask=inside[:, None] & (byte < step)[None, :], other=0)
        found = tl.interleave(held & 15, held >> 4).to(tl.int8) - 8
    elif BITS == 2:
        byte = tl.multiple_of(column0 // 4, BLOCK // 4) + tl.arange(0, BLOCK // 4)
        held = tl.load(at + byte[None, :], mask=inside[:, None] & (byte < step)[None, :], other=0)
        even, odd = tl.interleave(held & 3, held >> 4 & 3), tl.interleave(held >> 2 & 3, held >> 6)
        found = tl.interleave(even, odd).to(tl.int8) - 2
    else:
        column = column0 + tl.arange(0, BLOCK)
        found = tl.load(at + column[None, :], mask=inside[:, None] & (column < width)[None, :], other=0)
    return found


@triton.jit
def scales(scale, row, inside, terms, column0, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """The scales (ROWS, BLOCK), or (ROWS, 1), of the same numbers, in float32; GROUP columns share one."""
    ROWS: tl.constexpr = row.shape[0]
    groups = tl.cdiv(terms, GROUP)
    at = scale + row[:, None] * groups
    if GROUP % BLOCK == 0:
        found = tl.load(at + column0 // GROUP, mask=inside[:, None], other=0.0)
    elif BLOCK % GROUP == 0:
        COUNT: tl.constexpr = BLOCK // GROUP
        group = column0 // GROUP + tl.arange(0, COUNT)
        each = tl.load(at + group[None, :], mask=inside[:, None] & (group < groups)[None, :], other=0.0)
        found = tl.reshape(tl.broadcast_to(each[:, :, None], (ROWS, COUNT, GROUP)), (ROWS, BLOCK))
    else:
        group = (column0 + tl.arange(0, BLOCK)) // GROUP
        found = tl.load(at + group[None, :], mask=inside[:, None] & (group < groups)[None, :], other=0.0)
    return found.to(tl.float32)
