"""The operator slimrank::few_tokens: all outputs of several layers that read one input, in two launches.

torch.compile and CUDA graphs see one operator without side effects; it allocates as torch does, reads nothing back from
the device, and chooses its blocks by the shapes alone.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.serve.kernels.blocks import MOST, blocks

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PARTS = 3
"""Layers whose outputs one launch computes."""


class Place(NamedTuple):
    """Numbers of a layer in its unit: outputs copied from z, where its z starts, how long that is, kept inputs."""

    copies: int
    first: int
    rank: int


@torch.library.custom_op("slimrank::few_tokens", mutates_args=())
def few_tokens(
    x: Tensor, factor: Tensor, order: Tensor | None, kept: int, matrices: Sequence[Tensor | None],
    tables: Sequence[Tensor | None], biases: Sequence[Tensor | None], places: Sequence[int],
) -> Tensor:  # fmt: skip
    """The outputs (..., sum of out_i) of layers with the input factors F = `factor` (R, in - kept) of x (..., in).

    x holds 1 to MOST vectors. order, kept: of the one layer where some inputs are kept. matrices, tables, biases: see
    forms.outputs.Outputs. places: a Place for every layer, one after the other.

    Raises:
        SlimrankError: for tensors of several dtypes or devices, one that Triton can't serve, or too many tokens.
    """
    parts = [Place(*places[at : at + 3]) for at in range(0, len(places), 3)]
    check_tensors(x, [factor, *matrices, *biases], [order, *tables])
    vectors = x.reshape(-1, x.shape[-1])
    if vectors.stride(1) != 1:
        vectors = vectors.contiguous()
    y = x.new_empty(len(vectors), _outputs(matrices, parts))
    if len(vectors):
        with torch.cuda.device_of(x):
            z = _input_product(vectors, factor, order, kept)
            done = 0
            for at in range(0, len(parts), PARTS):
                some = slice(at, at + PARTS)
                done += _output_product(
                    vectors, z, y[:, done:], order, kept, matrices[some], tables[some], biases[some], parts[some]
                )
    return y.view(*x.shape[:-1], y.shape[1])


@torch.library.custom_op("slimrank::any_tokens", mutates_args=())
def any_tokens(
    x: Tensor, factor: Tensor, order: Tensor | None, kept: int, matrices: Sequence[Tensor | None],
    tables: Sequence[Tensor | None], biases: Sequence[Tensor | None], places: Sequence[int],
) -> Tensor:  # fmt: skip
    """few_tokens of any number of tokens: beyond MOST by torch's products.

    The choice is made when it runs, for servers that compile one graph for every number of tokens.
    """
    if x.numel() <= MOST * x.shape[-1]:
        return few_tokens(x, factor, order, kept, matrices, tables, biases, places)
    rest = x if order is None else x.index_select(-1, order[kept:])
    given = x[..., :0] if order is None else x.index_select(-1, order[:kept])
    z, outputs = torch.nn.functional.linear(rest, factor), []
    for at, (matrix, table, bias) in enumerate(zip(matrices, tables, biases, strict=True)):
        part = Place(*places[3 * at : 3 * at + 3])
        own, rows = z[..., part.first : part.first + part.rank], 0 if matrix is None else len(matrix)
        copied = own[..., : part.copies] if table is None else own.index_select(-1, table[rows + part.copies :])
        products = [] if matrix is None else [torch.nn.functional.linear(torch.cat([given, own], -1), matrix)]
        y = torch.cat([*products, copied], -1)
        if table is not None:
            y = torch.empty_like(y).index_copy_(-1, table[: y.shape[-1]].long(), y)
        outputs.append(y if bias is None else y + bias)
    return torch.cat(outputs, -1)


@few_tokens.register_fake
@any_tokens.register_fake
def _(x: Tensor, factor: Tensor, order: Any, kept: int, matrices: Any, tables: Any, biases: Any, places: Any) -> Tensor:
    parts = [Place(*places[at : at + 3]) for at in range(0, len(places), 3)]
    return x.new_empty(*x.shape[:-1], _outputs(matrices, parts))


def _outputs(matrices: Sequence[Tensor | None], parts: Sequence[Place]) -> int:
    rows = sum(len(matrix) for matrix in matrices if matrix is not None)
    return rows + sum(part.copies for part in parts)


def check_tensors(x: Tensor, floats: Sequence[Tensor | None], numbers: Sequence[Tensor | None]) -> None:
    """Raise a SlimrankError where the kernels would read what isn't there."""
    if x.dtype not in DTYPES or any(t is not None and t.dtype != x.dtype for t in floats):
        kinds = sorted({str(t.dtype).removeprefix("torch.") for t in (x, *floats) if t is not None})
        raise SlimrankError(f"few_tokens takes bfloat16, float16 or float32, one for all, not {' and '.join(kinds)}.")
    if any(t is not None and t.device != x.device for t in (*floats, *numbers)):
        devices = sorted({str(t.device) for t in (x, *floats, *numbers) if t is not None})
        raise SlimrankError(f"few_tokens takes tensors of one device, not of {' and '.join(devices)}.")
    if x.numel() > MOST * x.shape[-1]:
        raise SlimrankError(f"few_tokens takes up to {MOST} tokens, not {x.numel() // x.shape[-1]}.")
    if not x.is_cuda and not _interpreted():
        raise SlimrankError(f"few_tokens runs on CUDA devices, not on {x.device}.")


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def readable(matrix: Tensor) -> int:
    """Columns up to which a row may be read: its own, up to a multiple of 16 where there is memory, for wide loads."""
    rows, columns = matrix.shape
    wide = -(-columns // 16) * 16
    end = matrix.storage_offset() + (rows - 1) * matrix.stride(0) + wide
    fits = matrix.stride(0) % 16 == 0 and wide <= matrix.stride(0)
    return wide if fits and end * matrix.itemsize <= matrix.untyped_storage().nbytes() else columns


def _rows_first(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()


def _input_product(x: Tensor, factor: Tensor, order: Tensor | None, kept: int) -> Tensor:
    """z as parts (splits, tokens, R) whose sum it is: float32 where there are several, else of x's dtype."""
    from slimrank.serve.kernels.products import input_product

    factor, (tokens, rank) = _rows_first(factor), (len(x), len(factor))
    cut = blocks(tokens, rank, factor.shape[1], x.itemsize, _processors(x.device), splittable=True)
    step = -(-(rank + 15) // 16) * 16  # so that any part of a row can be read in whole 16s
    z = x.new_empty(cut.splits, tokens, step, dtype=torch.float32 if cut.splits > 1 else x.dtype)
    width = readable(factor)
    if rank:
        input_product[(-(-rank // cut.rows), cut.splits)](
            x, x.stride(0), x if order is None else order, kept, factor, factor.stride(0), width,
            z, step, tokens, rank, factor.shape[1], cut.chunk, TOKENS=cut.tokens, ROWS=cut.rows, BLOCK=cut.block,
            EXACT=width == factor.shape[1], INDEXED=order is not None, WIDEN=not x.is_cuda, num_warps=4,
        )  # fmt: skip
    return z


def _output_product(
    x: Tensor, z: Tensor, y: Tensor, order: Tensor | None, kept: int, matrices: Sequence[Tensor | None],
    tables: Sequence[Tensor | None], biases: Sequence[Tensor | None], parts: Sequence[Place],
) -> int:  # fmt: skip
    """Write the outputs of up to PARTS layers side by side into y (tokens, ...); returns how many they are."""
    from slimrank.serve.kernels.products import output_product

    tokens, rows = len(x), [0 if matrix is None else len(matrix) for matrix in matrices]
    longest = max((matrix.shape[1] for matrix in matrices if matrix is not None), default=1)
    cut = blocks(tokens, max(sum(rows), 1), longest, x.itemsize, _processors(x.device), parts=len(z))
    dummy_table = next((table for table in tables if table is not None), x)
    dummy_bias = next((bias for bias in biases if bias is not None), x)
    arguments, place, exact, tiles = list[Any](), 0, True, 0
    for matrix, table, bias, part, count in zip(matrices, tables, biases, parts, rows, strict=True):
        held = x if matrix is None else _rows_first(matrix)
        terms, width = (0, 0) if matrix is None else (held.shape[1], readable(held))
        exact &= width == terms
        arguments += [held, dummy_table if table is None else table, dummy_bias if bias is None else bias]
        arguments += [count, part.copies, terms, part.first, place, held.stride(0), width]
        tiles += -(-count // cut.rows) + -(-part.copies // cut.copies)
        place += count + part.copies
    arguments += arguments[:10] * (PARTS - len(parts))
    if tiles:
        output_product[(tiles,)](
            x, x.stride(0), x if order is None else order, kept, z, z.stride(1), z.stride(0), y, y.stride(0), tokens,
            *arguments, TOKENS=cut.tokens, ROWS=cut.rows, BLOCK=cut.block, COPIES=cut.copies, SPLITS=len(z),
            EXACT=exact, INDEXED=order is not None, PARTS=len(parts), TABLES=_bits(tables), BIASES=_bits(biases),
            WIDEN=not x.is_cuda, num_warps=4,
        )  # fmt: skip
    return place


def _bits(tensors: Sequence[Tensor | None]) -> int:
    return sum(1 << at for at, tensor in enumerate(tensors) if tensor is not None)
