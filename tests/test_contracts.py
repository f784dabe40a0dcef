"""What the docstrings of pure functions promise, for whatever they are given."""

import math
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.allocate.bayes import scale
from slimrank.allocate.dipsvd import block_shares, effective_rank, importance
from slimrank.factorize import FACTORIZERS
from slimrank.factorize.columns import bought_columns, every_trade, golden_section
from slimrank.forms import FORMS
from slimrank.forms.bits import pack, packed_bytes, places, unpack
from slimrank.forms.quantized import QuantizedLinear, stored_bytes
from slimrank.numerics import packing as numeric
from slimrank.numerics.gram_sum import GramSum
from slimrank.numerics.grams import Grams, square_root, squared_error
from slimrank.numerics.pivots import LARGEST, pivot_rows
from slimrank.plan import Plan
from slimrank.run.curves import points_of
from slimrank.runtime.world import World
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.decomposition import ROUTES, decompose_weight

quick = settings(max_examples=25, deadline=None)
sizes = st.integers(1, 24)
seeds = st.integers(0, 2**16)
shares = st.lists(st.floats(0.01, 1), min_size=1, max_size=9)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.booleans(), min_size=1, max_size=90))
@quick
def test_bits_are_unpacked_as_they_were_packed_and_places_are_two_countings(bits):
    mask = torch.tensor(bits)
    assert torch.equal(unpack(pack(mask), len(bits)), mask) and len(pack(mask)) == packed_bytes(len(bits))
    found = places(mask)
    for kind in (mask, ~mask):
        assert found[kind].tolist() == list(range(int(kind.sum())))


@given(sizes, st.integers(1, 12), st.integers(1, 3), seeds)
@quick
def test_a_gram_in_half_the_space_is_symmetric_and_exact_and_the_order_of_batches_is_free(n, tokens, batches, seed):
    x = torch.randint(-50, 50, (batches, tokens, n), generator=torch.Generator().manual_seed(seed)).float()
    forward, backward = (GramSum.empty(n, torch.device("cpu")) for _ in range(2))
    for batch in x:
        forward.add(batch)
    for batch in x.flip(0):
        backward.add(batch)
    flat = x.flatten(0, 1).double()
    assert torch.equal(forward.full(), flat.T @ flat) and torch.equal(forward.packed, backward.packed)


@given(sizes, st.integers(1, 90), st.sampled_from([8, 4, 3, 2]), seeds)
@quick
def test_whole_numbers_are_unpacked_as_they_were_packed(rows, columns, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=generator)
    packed = numeric.pack(numbers, bits)
    assert torch.equal(numeric.unpack(packed, bits, columns), numbers) and packed.nbytes == rows * numeric.row_bytes(
        columns, bits
    )
    for row, own in zip(packed.tolist(), numbers.tolist(), strict=True):
        stream = int.from_bytes(bytes(number % 256 for number in row), "little")
        places = [stream >> bits * place & 2**bits - 1 for place in range(columns)]
        assert [place - 2 ** (bits - 1) if bits < 8 else (place + 128) % 256 - 128 for place in places] == own


@given(sizes, st.integers(1, 90), st.sampled_from([8, 4, 3, 2]), st.sampled_from([None, 16, 32, 64]), seeds)
@quick
def test_a_layer_stores_as_many_bytes_as_it_says_and_gives_its_numbers_back(rows, columns, bits, group, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = QuantizedLinear(torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16), bits, group)
    numbers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=generator).to(torch.int8)
    scale = torch.rand(layer.scale.shape, generator=generator).bfloat16()
    layer.store(numbers, scale)
    assert sum(t.nbytes for t in layer.state_dict().values()) == stored_bytes(rows, columns, bits, group)
    assert torch.equal(layer.numbers(), numbers)
    wide = scale.double().repeat_interleave(group or columns, dim=1)[:, :columns]
    assert torch.equal(layer.matrix(torch.float64), numbers * wide)


@given(sizes, sizes, st.integers(1, 24), seeds)
@quick
def test_pivots_are_a_permutation_that_gives_every_row_back(rows, rank, true_rank, seed):
    rank = min(rank, rows)
    left = normal(rows, min(true_rank, rank), seed=seed) @ normal(min(true_rank, rank), rank, seed=seed + 1)
    order, combinations = pivot_rows(left)
    assert sorted(order.tolist()) == list(range(rows))
    pivots, others = order[:rank], order[rank:]
    torch.testing.assert_close(combinations @ left[pivots], left[others], rtol=0, atol=1e-8 * left.abs().max().item())
    if true_rank >= rank and torch.linalg.cond(left) < 1e6:
        assert not len(others) or combinations.abs().max() <= LARGEST + 1e-9
    for part in (pivots, others):
        assert part.tolist() == sorted(part.tolist())


@given(sizes, st.integers(1, 24), st.booleans(), seeds)
@quick
def test_a_square_root_and_its_pseudo_inverse(n, tokens, diagonal, seed):
    x = normal(n, tokens, seed=seed)
    gram = (x @ x.T).diagonal().clone() if diagonal else x @ x.T
    root, inverse = square_root(gram)
    full, root, inverse = (torch.diag(t) if diagonal else t for t in (gram, root, inverse))
    tolerance = 1e-7 * full.abs().max().item()
    torch.testing.assert_close(root @ root, full, rtol=0, atol=tolerance)
    torch.testing.assert_close(root @ inverse @ root, root, rtol=0, atol=1e-5 * root.abs().max().item())


@given(sizes, sizes, st.booleans(), seeds, st.sampled_from(list(ROUTES)))
@quick
def test_no_matrix_of_the_rank_is_nearer_than_the_cut(m, n, two_sided, seed, route):
    weight, x, y = normal(m, n, seed=seed), normal(n, 3 * n + 2, seed=seed + 1), normal(m, 3 * m + 2, seed=seed + 2)
    grams = Grams(y @ y.T if two_sided else None, x @ x.T)
    found = decompose_weight(weight, grams, route)
    left = np.linalg.cholesky((y @ y.T).numpy()) if two_sided else np.eye(m)
    best = np.linalg.svd(left.T @ weight.numpy() @ np.linalg.cholesky((x @ x.T).numpy()), compute_uv=False)
    assert found.values[: len(best)].tolist() == pytest.approx(best.tolist(), rel=1e-6, abs=1e-6 * best[0])
    for rank in range(min(m, n) + 1):
        u, v = found.cut(rank)
        assert u.shape == (m, rank) and v.shape == (rank, n)
        error = squared_error(weight - u @ v, grams)
        assert error == pytest.approx(float((best[rank:] ** 2).sum()), rel=1e-5, abs=1e-8 * best[0] ** 2)
        rival = normal(m, rank, seed=seed + 3) @ normal(rank, n, seed=seed + 4)
        assert error <= squared_error(weight - rival, grams) * (1 + 1e-9)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30), st.integers(1, 30), st.integers(3, 12))
@quick
def test_losses_fall_and_a_drawn_curve_has_both_ends_and_the_cut(values, cut, points):
    ordered = torch.tensor(sorted(values, reverse=True)).double()
    curve = Curve(ordered)
    losses = curve.losses()
    assert (losses.diff() <= 0).all() and losses[-1] == 0
    assert losses[0].item() == pytest.approx(sum(v * v for v in ordered.tolist()))
    drawn = points_of(curve, cut if cut <= len(values) else None, points)
    assert drawn.ranks == sorted(set(drawn.ranks)) and {1, len(values)} <= set(drawn.ranks)
    assert cut > len(values) or cut in drawn.ranks
    assert len(drawn.ranks) <= points and all(0 <= share <= 1 for share in (*drawn.singular, *drawn.error))


@given(
    st.sampled_from(list(FACTORIZERS)),
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.integers(1, 300),
    st.floats(0, 1),
    st.integers(1, 9),
)
@quick
def test_the_rank_for_a_budget_costs_no_more(name, rows, n, keep, multiple):
    form, shapes = FACTORIZERS[name](name=name, multiple=multiple), [(m, n) for m in rows]
    full, budget = min(sum(rows), n), keep * sum(rows) * n
    rank = form.rank_for(shapes, budget)
    assert 0 <= rank <= full and (rank == 0 or form.cost(shapes, rank) <= budget)
    assert rank % multiple == 0 or rank == full
    assert rank + multiple > full or form.cost(shapes, rank + multiple) > budget
    assert form.cost(shapes, rank) == sum(form.costs(shapes, rank))
    entry = {"form": name, "rank": rank, "columns": 0}
    assert len(rows) > 1 or rank == 0 or FORMS[name].count_parameters(*shapes[0], entry) <= form.cost(shapes, rank)


@given(sizes, sizes, st.integers(1, 24), st.integers(0, 24))
@quick
def test_bought_columns_never_cost_more_than_the_ranks_that_they_are_bought_with(m, n, rank, traded):
    rank = min(rank, m, n)
    traded = min(traded, rank - 1)
    columns = bought_columns((m, n), rank, traded)
    assert 0 <= columns <= n and (traded or columns == 0)
    assert (m + 1) * columns + (m + n - columns) * (rank - traded) <= rank * (m + n)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40))
@quick
def test_searches_of_a_trade_stay_inside_and_are_no_worse_than_none(losses):
    rank = len(losses)
    golden, every = golden_section(losses.__getitem__, rank), every_trade(losses.__getitem__, rank)
    assert 0 <= golden < rank and 0 <= every < rank
    assert losses[every] == min(losses) <= losses[golden] <= losses[0]


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.01, 1)), min_size=1, max_size=9), st.floats(0.01, 1))
@quick
def test_scaled_shares_spend_the_budget(items, keep):
    numbers, values = [size for size, _ in items], [value for _, value in items]
    found = scale(numbers, values, keep * sum(numbers))
    assert sum(n * s for n, s in zip(numbers, found, strict=True)) == pytest.approx(keep * sum(numbers))
    assert all(0 < share <= 1 + 1e-9 for share in found)


@given(shares, shares, st.floats(0, 1), st.sampled_from(["paper", "released"]), st.floats(0.35, 0.9))
@quick
def test_importance_is_a_share_and_the_blocks_shares_have_the_mean(sensitivities, ranks, beta, direction, keep):
    count = min(len(sensitivities), len(ranks))
    given = (torch.tensor(x[:count]).double() for x in (sensitivities, ranks))
    scores = importance(*given, beta, direction)
    assert ((scores >= 0) & (scores <= 1)).all()
    found = block_shares(scores, torch.ones(count).double(), keep, 0.2, (0.3, 0.98))
    assert found.mean().item() == pytest.approx(keep, rel=1e-9)
    assert (found >= 0.3 - 1e-12).all() and (found <= 0.98 + 1e-12).all()


@given(sizes, st.integers(1, 40), st.floats(0.01, 1), seeds)
@quick
def test_the_effective_rank_is_the_least_that_holds_the_share(n, tokens, energy, seed):
    x = normal(n, tokens, seed=seed)
    values = torch.linalg.svdvals(x)
    shares = values.cumsum(0) / values.sum()
    rank = effective_rank(x @ x.T, energy)
    assert 1 <= rank <= n
    assert rank > len(shares) or shares[rank - 1] >= energy - 1e-6
    assert rank == 1 or shares[min(rank, len(shares)) - 2] < energy + 1e-6


@given(st.integers(1, 8), st.integers(0, 60), st.lists(st.floats(0.1, 100), min_size=1, max_size=30))
@quick
def test_every_window_and_matrix_goes_to_one_process(size, more, costs):
    worlds = [SimpleNamespace(rank=rank, size=size) for rank in range(size)]
    count = size + more
    parts = [list(range(count))[World.part(world, count)] for world in worlds]
    assert list(chain(*parts)) == list(range(count)) and max(map(len, parts)) - min(map(len, parts)) <= 1
    dealt = [World.dealt(world, range(len(costs)), costs) for world in worlds]
    assert list(chain(*dealt)) == list(range(len(costs)))
    assert max(sum(costs[i] for i in mine) for mine in dealt) <= sum(costs) / size + max(costs) + 1e-9


@given(
    st.integers(0, 10**9), st.floats(0.01, 1), st.dictionaries(st.sampled_from("aé\n"), st.text('aé\n"', max_size=9))
)
@quick
def test_a_plan_is_read_as_it_was_written(tmp_path_factory, used, keep, model):
    recipe = {"name": "é\n", "metric": "whitened", "allocate": "uniform", "form": "low_rank"}
    linear = {"block": 0, "role": "q", "form": "dense", "shape": (2, 3), "parameters": 6, "loss": math.pi * keep}
    budget = {"dense": used, "allowed": used, "used": used}
    plan = Plan.model_validate(
        {"keep": keep, "model": model, "calibration": {}, "recipe": recipe, "budget": budget, "linears": {"l": linear}}
    )
    path = tmp_path_factory.getbasetemp() / "plan.json"
    path.write_text(plan.to_json(), encoding="utf-8")
    assert Plan.load(path) == plan
