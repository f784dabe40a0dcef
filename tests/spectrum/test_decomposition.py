from contextlib import contextmanager

import pytest
import torch

from slimrank.errors import SlimrankError
from slimrank.model.units import Unit
from slimrank.numerics.grams import Grams, squared_error
from slimrank.spectrum.curve import Curve, curve
from slimrank.spectrum.decompose import load_curve, save_curve
from slimrank.spectrum.decomposition import ROUTES, decompose_weight
from slimrank.store.pieces import DiskPieces

SHAPES = [(24, 24), (40, 16), (16, 40)]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(n, tokens=300, rank=None, seed=1):
    """X (n, tokens) with channels of very different scales; of lower rank where asked."""
    x = random(n, tokens, seed=seed) * torch.logspace(-3, 1, n, dtype=torch.float64)[:, None]
    return x if rank is None else random(n, rank, seed=seed) @ random(rank, tokens, seed=seed + 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_loses_the_tail_of_the_svd_of_wx(shape, route):
    w, x = random(*shape), inputs(shape[1])
    values = torch.linalg.svdvals(w @ x)
    found = decompose_weight(w, Grams(right=x @ x.T), route)
    torch.testing.assert_close(found.values, values[: len(found.values)], rtol=1e-8, atol=1e-8 * values[0].item())
    for rank in (1, 5, 11):
        left, right = found.cut(rank)
        measured = ((w - left @ right) @ x).norm()
        torch.testing.assert_close(measured, values[rank:].norm(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("route", ["projector", "eigen"])
def test_predicted_is_measured_where_inputs_are_rank_deficient(shape, route):
    w, x = random(*shape), inputs(shape[1], rank=9)
    found = decompose_weight(w, Grams(right=x @ x.T), route)
    losses = Curve(found.values).losses()
    for rank in (1, 4, 8):
        left, right = found.cut(rank)
        measured = ((w - left @ right) @ x).square().sum()
        torch.testing.assert_close(losses[rank], measured, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("deficient", [None, 9])
def test_the_projector_keeps_the_whole_weight_at_full_rank(shape, deficient):
    w, x = random(*shape), inputs(shape[1], rank=deficient)
    left, right = decompose_weight(w, Grams(right=x @ x.T)).cut(min(shape))
    torch.testing.assert_close(left @ right, w, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("diagonal", [True, False])
def test_two_sided_is_the_svd_of_the_weighted_matrix(shape, diagonal):
    m, n = shape
    w, y, x = random(m, n), random(m, 200, seed=5), inputs(n)
    g = (y @ y.T).diagonal() if diagonal else y @ y.T
    root = g.sqrt().diag() if diagonal else torch.linalg.cholesky(g)
    values = torch.linalg.svdvals(root.T @ w @ x)
    grams = Grams(g, x @ x.T)
    found = decompose_weight(w, grams)
    for rank in (1, 6, 12):
        left, right = found.cut(rank)
        error = squared_error(w - left @ right, grams)
        assert error == pytest.approx(values[rank:].square().sum().item(), rel=1e-8)


@pytest.mark.parametrize("shape", [(48, 48), (90, 40), (40, 90)])
@pytest.mark.parametrize(("bases", "tolerance"), [(True, 1e-6), (False, 1e-2)])
@pytest.mark.parametrize("deficient", [None, 30])
def test_a_curve_measures_every_cut_on_other_inputs(shape, bases, tolerance, deficient):
    m, n = shape
    w, y, held_out = random(m, n), random(m, 400, seed=5), inputs(n, seed=8)
    x = inputs(n, 900, seed=9) if deficient is None else inputs(n, rank=deficient)
    grams = Grams(y @ y.T, x @ x.T)
    found = curve(w, grams, Grams(right=held_out @ held_out.T), bases=bases)
    if deficient is None:
        losses, exact = (Curve(each.values).losses() for each in (found, decompose_weight(w, grams)))
        torch.testing.assert_close(losses, exact, rtol=1e-5, atol=0)
    assert (found.basis is not None) == bases
    whole = ((y @ y.T @ w) * (w @ held_out @ held_out.T)).sum().sqrt()
    for rank in (1, 9, 20, 28):
        left, right = decompose_weight(w, grams).cut(rank)
        lost = squared_error(w - left @ right, Grams(y @ y.T, held_out @ held_out.T)) ** 0.5 / whole.item()
        if lost > 2e-3:
            assert found.measured[rank].item() == pytest.approx(lost, rel=tolerance)


@pytest.mark.parametrize("strongest", [1.0, 8.0, 40.0])
@pytest.mark.parametrize(("left_decades", "right_decades"), [(1, 3), (2, 2), (3, 1)])
def test_values_alone_lose_little_to_float32(strongest, left_decades, right_decades):
    m, n = 700, 256
    w = random(m, n).bfloat16().double() / 16
    scales = torch.logspace(-left_decades, 0, m, dtype=torch.float64)[:, None]
    y = torch.linalg.qr(random(m, m, seed=3)).Q @ (scales * random(m, 2 * m, seed=4))
    y[:3] *= strongest  # at 40 float32 is not even tried
    x = torch.linalg.qr(random(n, n, seed=5)).Q @ (
        torch.logspace(-right_decades, 0, n).double()[:, None] * random(n, 2 * n, seed=6)
    )
    grams = Grams(y @ y.T, x @ x.T)
    rough, exact = (curve(w, grams, None, bases=bases).values for bases in (False, True))
    losses, true = (Curve(values).losses() for values in (rough, exact))
    torch.testing.assert_close(losses, true, rtol=5e-5, atol=0)


def test_measuring_is_timed_apart():
    inside = []

    @contextmanager
    def timer():
        inside.append("in")
        yield
        inside.append("out")

    w, x = random(9, 9), inputs(9)
    curve(w, Grams(right=x @ x.T), None, timer=timer)
    assert not inside
    curve(w, Grams(right=x @ x.T), Grams(right=x @ x.T), timer=timer)
    assert inside == ["in", "out"]


@pytest.mark.parametrize("shape", SHAPES)
def test_alternating_least_squares_finds_nothing_better(shape):
    w, g = random(*shape), inputs(shape[0], seed=3) / 10
    x = inputs(shape[1])
    left_gram, gram = g @ g.T, x @ x.T
    left, right = decompose_weight(w, Grams(left_gram, gram)).cut(7)
    left_again = torch.linalg.solve(right @ gram @ right.T, right @ gram @ w.T).T
    right_again = torch.linalg.solve(left.T @ left_gram @ left, left.T @ left_gram @ w)
    product = left @ right
    tolerance = {"rtol": 1e-5, "atol": 1e-6 * product.abs().max().item()}
    torch.testing.assert_close(left_again @ right, product, **tolerance)
    torch.testing.assert_close(left @ right_again, product, **tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decades", [1, 3])  # of values that are close together and that are not
def test_the_factors_lose_what_the_values_say(shape, decades):
    m, n = shape
    x = torch.logspace(-decades / 2, 0, n, dtype=torch.float64)[:, None] * random(n, 200, seed=2)
    y = random(m, 200, seed=5)
    grams = Grams(y @ y.T, x @ x.T)
    w = random(m, n)
    found = decompose_weight(w, grams)
    for rank in (1, 8, 14):
        left, right = found.cut(rank)
        assert squared_error(w - left @ right, grams) == pytest.approx(found.loss(rank), rel=1e-10)
        again = decompose_weight(w, grams, rank=rank)
        torch.testing.assert_close(again.left @ again.right, left @ right, rtol=1e-9, atol=1e-9)


def test_no_metric_is_plain_svd():
    w = random(12, 20)
    left, right = decompose_weight(w, Grams()).cut(5)
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    torch.testing.assert_close(left @ right, (u[:, :5] * s[:5]) @ v[:5], rtol=0, atol=1e-10)


def test_cholesky_damps_a_singular_gram_and_says_so():
    w, x = random(16, 24), inputs(24, rank=9)
    found = decompose_weight(w, Grams(right=x @ x.T), "cholesky")
    assert found.damping > 0 and found.values.isfinite().all() and found.right.isfinite().all()


def test_losses_fall_to_zero_at_full_rank():
    found = Curve(torch.tensor([3.0, 2.0, 1.0]))
    assert found.losses().tolist() == [found.loss(rank) for rank in range(4)] == [14.0, 5.0, 1.0, 0.0]
    assert [found.relative(rank) for rank in (0, 2, 3)] == pytest.approx([1, (1 / 14) ** 0.5, 0])


@pytest.mark.parametrize(
    "one", [Curve(random(3)), Curve(random(3), random(4), damping=1e-9, basis=random(3, 3), choice=1.5)]
)
def test_saved_and_loaded(one, tmp_path):
    unit = Unit(("a.0.x", "a.0.y"), 0, "x+y", ((3, 5), (4, 5)))
    save_curve(DiskPieces(tmp_path), unit, one)
    again = load_curve(DiskPieces(tmp_path), unit)
    assert (again.damping, again.choice) == (one.damping, one.choice)
    for kind in ("values", "measured", "basis"):
        found, saved = getattr(again, kind), getattr(one, kind)
        assert found is saved is None or torch.equal(found, saved)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
def test_of_a_weight_of_zeros_nothing_is_lost_at_any_rank(shape, route):
    x = inputs(shape[1])
    found = curve(torch.zeros(shape), Grams(right=x @ x.T), Grams(right=x @ x.T), route)
    assert found.measured is not None and found.measured.tolist() == [0.0] * (min(shape) + 1)


def test_without_bases_a_left_gram_may_be_a_vector():
    w, left, x = random(40, 16), random(40, seed=3).square(), inputs(16)
    found = curve(w, Grams(left, x @ x.T), None, bases=False)
    values = torch.linalg.svdvals(left.sqrt()[:, None] * w @ x)
    torch.testing.assert_close(found.values[0], values[0], rtol=5e-5, atol=0)


def test_the_cholesky_route_takes_a_gram_of_zeros_and_refuses_what_no_damping_helps():
    w, zeros = random(6, 8), torch.zeros(8, 8, dtype=torch.float64)
    found = decompose_weight(w, Grams(right=zeros), "cholesky")
    left, right = found.cut(6)
    torch.testing.assert_close(left @ right, w)
    assert found.damping == 1e-10
    with pytest.raises(SlimrankError, match="can't be factored for NaN or Inf"):
        decompose_weight(w, Grams(right=zeros + torch.nan), "cholesky")
