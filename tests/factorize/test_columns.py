import pytest
import torch
from torch import Tensor

from slimrank.factorize import Target
from slimrank.factorize.columns import (
    ColumnsFactorizer,
    best_trade,
    bought_columns,
    column_order,
    column_scores,
    golden_section,
    split_at,
)
from slimrank.forms import KeptColumns, LowRank
from slimrank.forms.linear import weight_of
from slimrank.numerics.grams import Grams
from slimrank.spectrum.decomposition import decompose_weight


def matrix(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight with a few heavy, unstructured columns, and the Gram of correlated inputs with outlier channels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight = 0.5 * weight + torch.randn(rows, 3, generator=generator, dtype=torch.float64) @ weight[:3]
    heavy = torch.randperm(columns, generator=generator)[: columns // 6]
    weight[:, heavy] += 5 * torch.randn(rows, len(heavy), generator=generator, dtype=torch.float64)
    x = torch.randn(columns, 3 * columns, generator=generator, dtype=torch.float64)
    return weight, x @ x.T


def optimum_with(weight: Tensor, gram: Tensor, kept: Tensor, rank: int) -> tuple[float, Tensor]:
    """Least |(W - W') X|^2 with exact columns `kept`, and W', through Cholesky and an SVD of the rest."""
    rest = torch.tensor([i for i in range(weight.shape[1]) if i not in set(kept.tolist())])
    factor = torch.linalg.cholesky(gram[rest][:, rest])
    u, s, v = torch.linalg.svd(weight[:, rest] @ factor, full_matrices=False)
    approximation = weight.clone()
    approximation[:, rest] = (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(factor)
    return s[rank:].square().sum().item(), approximation


def by_hand(weight: Tensor, gram: Tensor, rank: int) -> list[float]:
    """The loss at every delta in [0, rank - 1], all arithmetic done anew."""
    rows, columns = weight.shape
    _, plain = optimum_with(weight, gram, torch.tensor([], dtype=torch.int64), rank)
    score = (weight - plain).square().sum(0) * gram.diagonal()
    order = score.argsort(descending=True)
    losses = []
    for delta in range(rank):
        left = rank - delta
        count = max(c for c in range(columns) if rows * c + (rows + columns - c) * left + c <= rank * (rows + columns))
        losses.append(optimum_with(weight, gram, order[:count], left)[0])
    return losses


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rows", "columns", "rank"), [(24, 18, 7), (18, 24, 8), (30, 30, 12)])
def test_search_against_every_delta(rows, columns, rank, seed):
    weight, gram = matrix(rows, columns, seed)
    losses = by_hand(weight, gram, rank)
    grams = Grams(right=gram)
    golden, every = (
        best_trade(weight, grams, decompose_weight(weight, grams), rank, search=search)
        for search in ("golden", "every")
    )
    assert (every.traded > 0) == (min(losses) < 0.99 * losses[0])
    for trade in (golden, every):
        assert trade.loss == pytest.approx(losses[trade.traded], rel=1e-8)
        assert trade.traded == 0 or trade.loss < 0.99 * losses[0]
    if every.traded:
        assert every.loss == pytest.approx(min(losses), rel=1e-8)
    assert golden.loss <= 1.1 * min(losses)


def test_columns_are_kept_where_they_pay_and_the_loss_is_exact():
    weight, gram = matrix(30, 30, 1)
    grams = Grams(right=gram)
    decomposition = decompose_weight(weight, grams)
    trade = best_trade(weight, grams, decomposition, 12)
    split = split_at(weight, grams, column_order(weight, grams, decomposition, 12), 12, trade.traded)
    loss, approximation = optimum_with(weight, gram, split.order[: split.columns], split.rank)
    layer, found = build(weight, grams, 12)
    assert isinstance(layer, KeptColumns) and layer.columns == split.columns > 0
    assert found == split.loss == trade.loss == pytest.approx(loss, rel=1e-8)
    torch.testing.assert_close(layer.dense_weight(), approximation, rtol=1e-6, atol=1e-8)
    kept = split.order[: split.columns]
    assert torch.equal(layer.dense_weight()[:, kept], weight[:, kept])


@pytest.mark.parametrize("kind", ["full", "diagonal", "none"])
@pytest.mark.parametrize("left", [False, True])
def test_any_gram_gives_the_weighted_loss_of_what_is_built(kind, left):
    weight, gram = matrix(30, 30, 1)
    root = torch.randn(30, 30, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    right = {"full": gram, "diagonal": gram.diagonal().clone(), "none": None}[kind]
    grams = Grams(root @ root.T if left else None, right)
    split = split_at(weight, grams, torch.randperm(30, generator=torch.Generator().manual_seed(2)), 12, 4)
    kept = split.order[: split.columns]
    layer = KeptColumns.from_columns(weight[:, kept], *split.rest.cut(split.rank), kept)
    error = weight - layer.dense_weight()
    full = {"full": gram, "diagonal": gram.diagonal().diag(), "none": torch.eye(30, dtype=torch.float64)}[kind]
    weighted = (root.T if left else torch.eye(30, dtype=torch.float64)) @ error
    assert torch.trace(weighted @ full @ weighted.T).item() == pytest.approx(split.loss, rel=1e-6)


def test_scores_are_each_columns_own_error():
    weight, gram = matrix(6, 5, 1)
    expected = [sum(weight[r, i] ** 2 for r in range(6)) * gram[i, i] for i in range(5)]
    torch.testing.assert_close(column_scores(weight, Grams(right=gram)), torch.stack(expected))


@pytest.mark.parametrize("shape", [(64, 172), (172, 64), (32, 64), (5, 5)])
def test_the_budget_is_met_and_not_wasted(shape):
    rows, columns = shape
    for rank in range(1, rows * columns // (rows + columns)):
        for traded in range(rank):
            kept, left = bought_columns(shape, rank, traded), rank - traded
            entry = {"rank": left, "columns": kept}
            allowed = rank * (rows + columns)
            assert KeptColumns.count_parameters(rows, columns, entry) <= allowed
            assert KeptColumns.count_parameters(rows, columns, entry | {"columns": kept + 1}) > allowed


def test_equal_columns_stay_plain_low_rank():
    weight = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    layer, loss = build(weight, Grams(), 1)
    assert isinstance(layer, LowRank) and layer.rank == 1
    assert loss == pytest.approx(torch.linalg.svdvals(weight.double())[1:].square().sum().item())


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 17, 60])
def test_golden_section_finds_the_minimum_of_a_valley(rank):
    for best in range(rank):
        found = golden_section(lambda delta, best=best: float((delta - best) ** 2), rank)
        probes = [min(round(share * rank), rank - 1) for share in (0.382, 0.090)]
        assert found == (best if any(abs(probe - best) < best for probe in probes) else 0)


def build(weight: Tensor, grams: Grams, rank: int, gain: float = 0.01) -> tuple[KeptColumns | LowRank, float]:
    dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    dense.weight.data.copy_(weight)
    target = Target([dense], weight_of(dense).detach(), grams, decompose_weight(weight, grams), "dense")
    built = ColumnsFactorizer(gain=gain).build(target, rank)
    (layer,) = built.layers
    return layer, built.loss
