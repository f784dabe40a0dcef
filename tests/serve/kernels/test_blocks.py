import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrank.serve.kernels.blocks import MOST, STAGE, blocks

sizes = st.integers(1, 40000)


@given(
    st.integers(1, MOST), sizes, sizes, st.sampled_from([2, 4]), st.integers(1, 200), st.booleans(), st.integers(1, 8)
)
def test_every_block_fits_and_every_column_is_in_one_part(
    tokens, rows, columns, itemsize, processors, splittable, parts
):
    found = blocks(tokens, rows, columns, itemsize, processors, splittable=splittable, parts=parts)
    for size in (found.tokens, found.rows, found.block, found.copies):
        assert size & (size - 1) == 0
    assert tokens <= found.tokens and (found.tokens == 1 or min(found.tokens, found.rows, found.block) >= 16)
    stage = (found.rows * itemsize + found.tokens * (itemsize if parts == 1 else 4 * parts)) * found.block
    assert stage <= 2 * STAGE or found.block == 16
    ranges = [range(part * found.chunk, (part + 1) * found.chunk) for part in range(found.splits)]
    assert ranges[-1].stop * found.block >= columns > ranges[-1].start * found.block
    assert found.splits == 1 or (splittable and found.splits * tokens <= 16)
    assert found.tokens * found.copies <= 4096


@pytest.mark.parametrize("shape", [(1500, 4096), (600, 2048), (2496, 1504), (9000, 2000), (300, 2048)])
@pytest.mark.parametrize("tokens", [1, 4])
def test_few_tokens_leave_few_processors_of_a_large_gpu_idle(shape, tokens):
    found = blocks(tokens, *shape, itemsize=2, processors=132, splittable=True)
    assert -(-shape[0] // found.rows) * found.splits > 0.5 * 132
