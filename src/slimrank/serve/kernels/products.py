"""The two Triton kernels of a unit: z = F x, and y = [M z ; z] with every output put where it belongs.

Both add up rows of a matrix times vectors, in float32; matrices are read once, may have any size, and hold floats or
whole numbers of few bits (unpack.py). Blocks are chosen in blocks.py, and the launches are in operator.py.
TRITON_INTERPRET=1 runs them on CPU tensors.
"""

import triton
import triton.language as tl

from slimrank.serve.kernels.unpack import numbers, scales

OF_PART = ("rows", "copies", "terms", "place")
LOOSE = ["tokens", "inputs", "chunk", "kept", "y_step"]
LOOSE += [f"{name}{part}" for name in OF_PART for part in range(3)]
"""Numbers that no kernel is compiled anew for; for others it is where they are multiples of 16, and loads are wide."""


@triton.jit
def times(
    total, row, inside, matrix, scale, step, terms, width, start, end, x, x_step, index, kept, z, z_step, z_split,
    tokens, TOKENS: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, EXACT: tl.constexpr,
    INDEXED: tl.constexpr, FROM_Z: tl.constexpr, WIDEN: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add the products of M's rows with the columns from `start` to `end` of [x ; z], which is one where one is absent.

    total: (ROWS, BLOCK) for one token, to be summed, else (ROWS, TOKENS). Up to `width` there is memory behind a row of
    M and of z, of which `terms` columns are its own. x is read through `index`; z is the sum of SPLITS parts. WIDEN is
    for the interpreter, which multiplies no matrices in bfloat16. BITS, GROUP: of whole numbers and their scales, 0 of
    floats and of a scale that is a whole row's and for the caller to multiply by.
    """
    token = tl.arange(0, TOKENS)
    # with stages of its own, a loop fetches ahead also what no dot reads
    for column0 in tl.range(start, end, BLOCK, num_stages=4):
        column = column0 + tl.arange(0, BLOCK)
        weight = numbers(matrix, row, inside, step, width, column0, BLOCK, BITS)
        if GROUP:
            weight = weight.to(tl.float32) * scales(scale, row, inside, terms, column0, BLOCK, GROUP)
        if BITS == 0 and not EXACT:  # whole numbers behind a row are no NaN
            weight = tl.where((column < terms)[None, :], weight, 0.0)
        own = (token < tokens)[:, None] & (column < (width if EXACT or FROM_Z else terms))[None, :]
        if FROM_Z:
            behind = own & (column >= kept)[None, :] if INDEXED else own
            value = summed(z, z_step, z_split, token, column - kept if INDEXED else column, behind, SPLITS)
            value = value.to(x.dtype.element_ty)
            if INDEXED:
                place = tl.load(index + column, mask=column < kept, other=0)
                taken = own & (column < kept)[None, :]
                given = tl.load(x + token[:, None] * x_step + place[None, :], mask=taken, other=0.0)
                value = tl.where(taken, given, value)
            if not EXACT:
                value = tl.where((column < terms)[None, :], value, 0.0)
        else:
            place = column
            if INDEXED:
                place = tl.load(index + kept + column, mask=column < terms, other=0)
            value = tl.load(x + token[:, None] * x_step + place[None, :], mask=own, other=0.0)
        if TOKENS == 1:
            total += weight.to(tl.float32) * value.to(tl.float32)
        else:
            value = value.to(tl.float32) if WIDEN else value
            weight = weight.to(value.dtype)
            total = tl.dot(weight, tl.trans(value), total, input_precision="ieee")
    return total


@triton.jit
def summed(z, z_step, z_split, token, column, mask, SPLITS: tl.constexpr):
    """z at these tokens and columns: (TOKENS, BLOCK)."""
    at = z + token[:, None] * z_step + column[None, :]
    value = tl.load(at, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        value += tl.load(at + split * z_split, mask=mask, other=0.0)
    return value


@triton.jit
def row_sums(total, scale, row, inside, TOKENS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr):
    """What `times` gave as (ROWS, TOKENS), times the scale of a whole row where it is that."""
    if TOKENS == 1:
        total = tl.sum(total, 1)[:, None]
    if BITS != 0 and GROUP == 0:
        total *= tl.load(scale + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit(do_not_specialize=LOOSE)
def input_product(
    x, x_step, index, kept, z, z_step, tokens, inputs, chunk,
    matrix0, scale0, rows0, place0, step0, width0,
    matrix1, scale1, rows1, place1, step1, width1,
    matrix2, scale2, rows2, place2, step2, width2,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr, INDEXED: tl.constexpr,
    PARTS: tl.constexpr, WIDEN: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """z[s] = F[:, chunk s] x[chunk s] for program (row tile, s): (splits, tokens, rank), tokens z_step apart.

    F is up to three matrices, one below the other; the first row of each gives the number `place` of z.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    matrix, scale, rows, place, step, width = matrix0, scale0, rows0, place0, step0, width0
    if PARTS > 1:
        tiles = tl.cdiv(rows0, ROWS)
        if tile >= tiles:
            tile -= tiles
            matrix, scale, rows, place, step, width = matrix1, scale1, rows1, place1, step1, width1
            if PARTS > 2:
                tiles = tl.cdiv(rows1, ROWS)
                if tile >= tiles:
                    tile -= tiles
                    matrix, scale, rows, place, step, width = matrix2, scale2, rows2, place2, step2, width2
    row = tile * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    start = split * chunk * BLOCK
    total = tl.zeros((ROWS, BLOCK if TOKENS == 1 else TOKENS), dtype=tl.float32)
    total = times(
        total, row.to(tl.int64), inside, matrix, scale, step, inputs, width,
        start, min(start + chunk * BLOCK, inputs), x, x_step, index, kept, x, 0, 0, tokens,
        TOKENS, BLOCK, 1, EXACT, INDEXED, False, WIDEN, BITS, GROUP,
    )  # fmt: skip
    total = row_sums(total, scale, row, inside, TOKENS, BITS, GROUP)
    token = tl.arange(0, TOKENS)
    at = z + (split * tokens + token[None, :]) * z_step + (place + row)[:, None]
    tl.store(at, total.to(z.dtype.element_ty), mask=inside[:, None] & (token < tokens)[None, :])


@triton.jit(do_not_specialize=LOOSE)
def output_product(
    x, x_step, index, kept, z, z_step, z_split, y, y_step, tokens,
    matrix0, scale0, table0, bias0, rows0, copies0, terms0, first0, place0, step0, width0,
    matrix1, scale1, table1, bias1, rows1, copies1, terms1, first1, place1, step1, width1,
    matrix2, scale2, table2, bias2, rows2, copies2, terms2, first2, place2, step2, width2,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COPIES: tl.constexpr, SPLITS: tl.constexpr,
    EXACT: tl.constexpr, INDEXED: tl.constexpr, FROM_Z: tl.constexpr, PARTS: tl.constexpr, TABLES: tl.constexpr,
    BIASES: tl.constexpr, WIDEN: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y of up to three parts: a program for a tile of a part's rows, then one for a tile of its copies.

    A part's table says which output a row gives, and each copy, and then which number of z each copy is; without one
    they are as they come. TABLES and BIASES have a bit for every part that has one. Without FROM_Z, M multiplies x.
    """
    tile = tl.program_id(0)
    matrix, scale, table, bias, step, width = matrix0, scale0, table0, bias0, step0, width0
    rows, copies, terms, first, place = rows0, copies0, terms0, first0, place0
    tabled, biased = TABLES & 1, BIASES & 1
    if PARTS > 1:
        tiles = tl.cdiv(rows0, ROWS) + tl.cdiv(copies0, COPIES)
        if tile >= tiles:
            tile -= tiles
            matrix, scale, table, bias, step, width = matrix1, scale1, table1, bias1, step1, width1
            rows, copies, terms, first, place = rows1, copies1, terms1, first1, place1
            tabled, biased = (TABLES >> 1) & 1, (BIASES >> 1) & 1
            if PARTS > 2:
                tiles = tl.cdiv(rows1, ROWS) + tl.cdiv(copies1, COPIES)
                if tile >= tiles:
                    tile -= tiles
                    matrix, scale, table, bias, step, width = matrix2, scale2, table2, bias2, step2, width2
                    rows, copies, terms, first, place = rows2, copies2, terms2, first2, place2
                    tabled, biased = (TABLES >> 2) & 1, (BIASES >> 2) & 1
    token = tl.arange(0, TOKENS)
    product_tiles = tl.cdiv(rows, ROWS)
    if tile < product_tiles:
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        total = tl.zeros((ROWS, BLOCK if TOKENS == 1 else TOKENS), dtype=tl.float32)
        total = times(
            total, row.to(tl.int64), inside, matrix, scale, step, terms, width, 0, terms,
            x, x_step, index, kept if FROM_Z else 0, z + first, z_step, z_split, tokens,
            TOKENS, BLOCK, SPLITS, EXACT, INDEXED, FROM_Z, WIDEN, BITS, GROUP,
        )  # fmt: skip
        total = row_sums(total, scale, row, inside, TOKENS, BITS, GROUP)
        target = row
        if TABLES:
            target = tl.where(tabled != 0, tl.load(table + row, mask=inside & (tabled != 0), other=0), row)
        if BIASES:
            total += tl.load(bias + target, mask=inside & (biased != 0), other=0.0).to(tl.float32)[:, None]
        at = y + token[None, :] * y_step + (place + target)[:, None]
        tl.store(at, total.to(y.dtype.element_ty), mask=inside[:, None] & (token < tokens)[None, :])
    else:
        copy = (tile - product_tiles) * COPIES + tl.arange(0, COPIES)
        copied = copy < copies
        copied_to, source = rows + copy, copy
        if TABLES:
            found = copied & (tabled != 0)
            copied_to = tl.where(tabled != 0, tl.load(table + rows + copy, mask=found, other=0), copied_to)
            source = tl.where(tabled != 0, tl.load(table + rows + copies + copy, mask=found, other=0), source)
        readable = (token < tokens)[:, None] & copied[None, :]
        value = summed(z, z_step, z_split, token, first + source, readable, SPLITS).to(y.dtype.element_ty)
        if BIASES:
            added = tl.load(bias + copied_to, mask=copied & (biased != 0), other=0.0).to(tl.float32)
            value = value.to(tl.float32) + added[None, :]
        spot = y + token[:, None] * y_step + (place + copied_to)[None, :]
        tl.store(spot, value.to(y.dtype.element_ty), mask=readable)
