"""How the products of few tokens are cut into blocks: a function of their shapes, so that nothing is tried out."""

from dataclasses import dataclass

MOST = 64
"""Tokens up to which these kernels serve; beyond, products are bound by arithmetic, for which cuBLAS is made."""

STAGE = 16 * 1024
"""Bytes of matrix and vectors that are loaded at once: four stages fit in the shared memory of any GPU with bf16."""


@dataclass(frozen=True)
class Blocks:
    """A program computes `rows` rows for all tokens, padded to `tokens`, `block` columns at a time.

    splits: parts of the columns that are summed apart, `chunk` blocks each.
    """

    tokens: int
    rows: int
    block: int
    splits: int
    chunk: int

    @property
    def copies(self) -> int:
        """Outputs of a program that only copies: as many as its registers hold."""
        return min(256, 4096 // self.tokens)


def blocks(
    tokens: int, rows: int, columns: int, itemsize: int, processors: int, *, splittable: bool = False, parts: int = 1,
    bits: int = 0,
) -> Blocks:  # fmt: skip
    """The blocks of a matrix (rows, columns), numbers of `itemsize` bytes, times 1 to MOST vectors.

    parts: how many float32 vectors each vector is the sum of, where that isn't one; bits: of the matrix's numbers, 0
    where they are as large as the vectors'.

    A tile of many rows reads the vectors less often; one of few leaves no processor idle. What has few rows is split
    along the columns, where it may be, less often for more tokens: what reads the outcome then reads all parts.
    """
    padded = 1 if tokens == 1 else max(16, _power(tokens))
    tile = 16 if tokens <= 8 else 32 if tokens <= 16 else 64
    least = 8 if tokens == 1 else 16
    while tile > least and -(-rows // tile) < processors:
        tile //= 2
    column = tile * (bits / 8 or itemsize) + padded * (itemsize if parts == 1 else 4 * parts)  # bytes of one
    block = 4096 // tile if tokens == 1 else int(STAGE // column)
    block = max(16, min(_power(block + 1) // 2, 512, max(16, _power(columns))))
    columns, splits, tiles = max(columns, 1), 1, -(-rows // tile)
    while splittable and tiles * splits < processors and 2 * splits * tokens <= 16 and columns >= 2 * splits * block:
        splits *= 2
    pieces = -(-columns // block)
    chunk = -(-pieces // splits)
    return Blocks(padded, tile, block, -(-pieces // chunk), chunk)


def _power(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (max(number, 1) - 1).bit_length()
