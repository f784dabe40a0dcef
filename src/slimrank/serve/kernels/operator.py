"""The operator slimrank::few_tokens: all outputs of several layers that read one input, in two launches.

torch.compile and CUDA graphs see one operator without side effects; it allocates as torch does, reads nothing back from
the device, and chooses its blocks by the shapes alone.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slimrank.numerics.take import take_last
from slimrank.serve.kernels.blocks import MOST, blocks
from slimrank.serve.kernels.tensors import check_numbers, check_tensors, readable, rows_first

PARTS = 3
"""Layers whose outputs one launch computes, and input factors that one multiplies by."""


class Place(NamedTuple):
    """Numbers of a layer in its unit: outputs copied from z, where its z starts, how long that is."""

    copies: int
    first: int
    rank: int


class Call(NamedTuple):
    """What all launches read: x (tokens, in), of which inputs order[:kept] are kept, and how matrices are stored."""

    x: Tensor
    order: Tensor | None
    kept: int
    bits: int
    group: int


@torch.library.custom_op("slimrank::few_tokens", mutates_args=())
def few_tokens(
    x: Tensor, factors: Sequence[Tensor], order: Tensor | None, kept: int, matrices: Sequence[Tensor | None],
    tables: Sequence[Tensor | None], biases: Sequence[Tensor | None], places: Sequence[int],
    scales: Sequence[Tensor | None], bits: int, group: int,
) -> Tensor:  # fmt: skip
    """The outputs (..., sum of out_i) of layers with the input factors F (R, in - kept) of x (..., in).

    x holds 1 to MOST vectors. factors: the rows of F in one matrix or several; none where all inputs are kept, so that
    every layer is y = M x + b. order, kept: of the one layer where some inputs are kept. matrices, tables, biases: see
    forms.outputs.Outputs. places: a Place for every layer, one after the other.
    bits: of the whole numbers in factors and matrices, which are stored as QuantizedLinear's, `group` inputs sharing a
    scale, 0 for a whole row; scales: of each factor, then of each matrix. For floats [], 0 and 0.

    Raises:
        SlimrankError: for tensors of several dtypes or devices, one that Triton can't serve, or too many tokens; for
            whole numbers or scales of other shapes.
    """
    parts = [Place(*places[at : at + 3]) for at in range(0, len(places), 3)]
    held = [*factors, *matrices]
    check_tensors(x, [*(scales if bits else held), *biases], [order, *tables, *(held if bits else [])])
    if bits:
        columns = [x.shape[-1] - kept] * len(factors) + [kept + part.rank for part in parts]
        check_numbers(held, scales, columns, bits, group)
    vectors = x.reshape(-1, x.shape[-1])
    call = Call(vectors if vectors.stride(1) == 1 else vectors.contiguous(), order, kept, bits, group)
    y = x.new_empty(len(vectors), _outputs(matrices, parts))
    if len(vectors):
        with torch.cuda.device_of(x):
            z = _input_product(call, factors, scales[: len(factors)]) if factors else None
            own, done = scales[len(factors) :], 0
            for at in range(0, len(parts), PARTS):
                some = slice(at, at + PARTS)
                done += _output_product(
                    call, z, y[:, done:], matrices[some], own[some], tables[some], biases[some], parts[some]
                )
    return y.view(*x.shape[:-1], y.shape[1])


@torch.library.custom_op("slimrank::any_tokens", mutates_args=())
def any_tokens(
    x: Tensor, factor: Tensor, order: Tensor | None, kept: int, matrices: Sequence[Tensor | None],
    tables: Sequence[Tensor | None], biases: Sequence[Tensor | None], places: Sequence[int],
) -> Tensor:  # fmt: skip
    """few_tokens of floats and any number of tokens: beyond MOST by torch's products.

    The choice is made when it runs, for servers that compile one graph for every number of tokens.
    """
    if x.numel() <= MOST * x.shape[-1]:
        return few_tokens(x, [factor], order, kept, matrices, tables, biases, places, [], 0, 0)
    rest = x if order is None else take_last(x, order[kept:])
    given = x[..., :0] if order is None else take_last(x, order[:kept])
    z, outputs = torch.nn.functional.linear(rest, factor), []
    for at, (matrix, table, bias) in enumerate(zip(matrices, tables, biases, strict=True)):
        part = Place(*places[3 * at : 3 * at + 3])
        own, rows = z[..., part.first : part.first + part.rank], 0 if matrix is None else len(matrix)
        copied = own[..., : part.copies] if table is None else take_last(own, table[rows + part.copies :])
        products = [] if matrix is None else [torch.nn.functional.linear(torch.cat([given, own], -1), matrix)]
        y = torch.cat([*products, copied], -1)
        if table is not None:
            y = torch.empty_like(y).index_copy_(-1, table[: y.shape[-1]].long(), y)
        outputs.append(y if bias is None else y + bias)
    return torch.cat(outputs, -1)


@few_tokens.register_fake
def _(
    x: Tensor, factors: Any, order: Any, kept: int, matrices: Any, tables: Any, biases: Any, places: Any,
    scales: Any, bits: int, group: int,
) -> Tensor:  # fmt: skip
    return _fake(x, matrices, places)


@any_tokens.register_fake
def _(x: Tensor, factor: Tensor, order: Any, kept: int, matrices: Any, tables: Any, biases: Any, places: Any) -> Tensor:
    return _fake(x, matrices, places)


def _fake(x: Tensor, matrices: Sequence[Tensor | None], places: Sequence[int]) -> Tensor:
    parts = [Place(*places[at : at + 3]) for at in range(0, len(places), 3)]
    return x.new_empty(*x.shape[:-1], _outputs(matrices, parts))


def _outputs(matrices: Sequence[Tensor | None], parts: Sequence[Place]) -> int:
    rows = sum(len(matrix) for matrix in matrices if matrix is not None)
    return rows + sum(part.copies for part in parts)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def _input_product(call: Call, factors: Sequence[Tensor], scales: Sequence[Tensor | None]) -> Tensor:
    """z as parts (splits, tokens, R) whose sum it is: float32 where there are several, else of x's dtype."""
    from slimrank.serve.kernels.products import input_product

    x, order, kept, bits, group = call
    tokens, inputs, rank = len(x), x.shape[1] - kept, sum(len(factor) for factor in factors)
    cut = blocks(tokens, rank, inputs, x.itemsize, _processors(x.device), splittable=True, bits=bits)
    step = -(-(rank + 15) // 16) * 16  # so that any part of a row can be read in whole 16s
    z = x.new_empty(cut.splits, tokens, step, dtype=torch.float32 if cut.splits > 1 else x.dtype)
    place, given = 0, list(scales) or [None] * len(factors)
    for at in range(0, len(factors), PARTS):
        arguments, exact, tiles = list[Any](), True, 0
        for factor, scale in zip(factors[at : at + PARTS], given[at : at + PARTS], strict=True):
            held = rows_first(factor, bits)
            width = readable(held, inputs, bits)
            arguments += [held, x if scale is None else scale.contiguous(), len(held), place, held.stride(0), width]
            exact &= width == inputs
            place, tiles = place + len(held), tiles + -(-len(held) // cut.rows)
        parts = len(arguments) // 6
        if tiles:
            input_product[(tiles, cut.splits)](
                x, x.stride(0), x if order is None else order, kept, z, step, tokens, inputs, cut.chunk,
                *arguments, *arguments[:6] * (PARTS - parts), TOKENS=cut.tokens, ROWS=cut.rows, BLOCK=cut.block,
                EXACT=exact, INDEXED=order is not None, PARTS=parts, WIDEN=not x.is_cuda, BITS=bits, GROUP=group,
                num_warps=4,
            )  # fmt: skip
    return z


def _output_product(
    call: Call, z: Tensor | None, y: Tensor, matrices: Sequence[Tensor | None], scales: Sequence[Tensor | None],
    tables: Sequence[Tensor | None], biases: Sequence[Tensor | None], parts: Sequence[Place],
) -> int:  # fmt: skip
    """Write the outputs of up to PARTS layers side by side into y (tokens, ...); returns how many they are."""
    from slimrank.serve.kernels.products import output_product

    x, order, kept, bits, group = call
    splits, rows = 1 if z is None else len(z), [0 if matrix is None else len(matrix) for matrix in matrices]
    if not any(rows):
        bits = group = 0
    longest = max((kept + part.rank for part, count in zip(parts, rows, strict=True) if count), default=1)
    cut = blocks(len(x), max(sum(rows), 1), longest, x.itemsize, _processors(x.device), parts=splits, bits=bits)
    some_matrix, some_scale, some_table, some_bias = (
        first_of(those, x) for those in (matrices, scales, tables, biases)
    )
    arguments, place, exact, tiles = list[Any](), 0, True, 0
    for at, (matrix, table, bias, part) in enumerate(zip(matrices, tables, biases, parts, strict=True)):
        held, terms = some_matrix if matrix is None else rows_first(matrix, bits), kept + part.rank
        scale = scales[at] if bits else None
        width = terms if matrix is None else readable(held, terms, bits)
        exact &= width == terms
        arguments += [held, some_scale if scale is None else scale.contiguous()]
        arguments += [some_table if table is None else table, some_bias if bias is None else bias]
        arguments += [rows[at], part.copies, terms, part.first, place, held.stride(0), width]
        tiles += -(-rows[at] // cut.rows) + -(-part.copies // cut.copies)
        place += rows[at] + part.copies
    arguments += arguments[:11] * (PARTS - len(parts))
    from_z = x[None] if z is None else z
    if tiles:
        output_product[(tiles,)](
            x, x.stride(0), x if order is None else order, kept, from_z, from_z.stride(1), from_z.stride(0),
            y, y.stride(0), len(x), *arguments, TOKENS=cut.tokens, ROWS=cut.rows, BLOCK=cut.block, COPIES=cut.copies,
            SPLITS=splits, EXACT=exact, INDEXED=order is not None, FROM_Z=z is not None, PARTS=len(parts),
            TABLES=_bits(tables), BIASES=_bits(biases), WIDEN=not x.is_cuda, BITS=bits, GROUP=group, num_warps=4,
        )  # fmt: skip
    return place


def first_of(tensors: Sequence[Tensor | None], other: Tensor) -> Tensor:
    """The first tensor there is: what stands, unread, in the place of one that isn't there."""
    return next((tensor for tensor in tensors if tensor is not None), other)


def _bits(tensors: Sequence[Tensor | None]) -> int:
    return sum(1 << at for at, tensor in enumerate(tensors) if tensor is not None)
