import copy

import numpy as np
import pytest
import torch
from lossless import factors
from torch import nn
from transformers.pytorch_utils import Conv1D

from slimrank.errors import SlimrankError
from slimrank.forms import FORMS, Form, LowRank, Pivoted, compressed_layers, form_of
from slimrank.forms.linear import shape_of, weight_of
from slimrank.numerics.pivots import by_qr, by_swaps, pivot_rows

SHAPES = [(12, 8, 3), (8, 12, 3), (8, 8, 8), (12, 8, 8), (8, 12, 8), (7, 5, 1), (1, 6, 1)]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("out", "inp", "rank"), SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_is_the_product_of_its_factors(form, out, inp, rank, biased):
    left, right, bias = random(out, rank), random(rank, inp), random(out) if biased else None
    module = FORMS[form].from_low_rank(left, right, bias)
    x = random(2, 3, inp)
    torch.testing.assert_close(module.dense_weight(), left @ right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(x), nn.functional.linear(x, left @ right, bias), rtol=1e-12, atol=1e-12)
    assert (module.in_features, module.out_features, module.rank) == (
        inp,
        out,
        rank if module.ranked else min(out, inp),
    )


@pytest.mark.parametrize(("out", "inp", "rank"), SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_counts_what_it_stores(form, out, inp, rank):
    module = FORMS[form].from_low_rank(random(out, rank), random(rank, inp))
    stored = sum(tensor.numel() for tensor in module.state_dict().values())
    assert module.count_parameters(out, inp, module.entry()) == stored


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("form", FORMS)
def test_declares_what_it_stores(form, bits):
    module = FORMS[form].from_low_rank(random(12, 3), random(3, 8), random(12))
    module.use_bits(bits)
    names = {"weight", module.bias_name, *module.stored_names()}
    assert names >= module.state_dict().keys() and set(module.present_factors()) == set(module.factors)
    kept = {name for name in names if bits or not name.endswith(".scale")}
    assert kept == module.state_dict().keys()


@pytest.mark.parametrize("form", FORMS)
def test_tells_its_outputs_and_bias(form):
    module = FORMS[form].from_low_rank(random(12, 3), random(3, 8), random(12))
    assert module.count_outputs(module.entry(), module.state_dict()) == 12
    assert torch.equal(module.dense_bias(), random(12))
    assert FORMS[form].from_low_rank(random(12, 3), random(3, 8)).dense_bias() is None


def test_published_counts():
    entry = {"rank": 3}
    assert LowRank.count_parameters(12, 8, entry) == 3 * (12 + 8)
    assert Pivoted.count_parameters(12, 8, entry) == 3 * (12 + 8) - 3**2 + 2
    assert Pivoted.count_parameters(8, 8, {"rank": 8}) == 8 * 8 + 1


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_shell_takes_the_state_of_the_module_it_stands_for(form, biased):
    for dense in (nn.Linear(8, 12, bias=biased), Conv1D(12, 8)):
        module = FORMS[form].from_low_rank(*factors(weight_of(dense)), dense.bias)
        shell = FORMS[form].shell(dense, module.entry())
        shell.load_state_dict(module.state_dict())
        x = random(4, 8, dtype=torch.float32)
        assert torch.equal(shell(x), module(x)) and shell.entry() == module.entry()
        assert module.entry().items() >= ({"form": form} | ({"rank": 8} if module.ranked else {})).items()
        torch.testing.assert_close(shell(x), dense(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_shell_follows_the_dense_device_and_dtype(form):
    dense = nn.Linear(8, 12, device="meta", dtype=torch.bfloat16)
    entry = {"form": form, "rank": 2}
    kinds = {(t.device.type, t.dtype) for t in FORMS[form].shell(dense, entry).state_dict().values()}
    assert kinds - {("meta", torch.int32), ("meta", torch.uint8)} == {("meta", torch.bfloat16)}
    moved = FORMS[form].shell(dense, entry, device="cpu", dtype=torch.float32)
    assert moved.weight.device.type == "cpu" and moved.weight.dtype == torch.float32


@pytest.mark.parametrize("form", FORMS)
def test_draws_no_random_numbers(form):
    before = torch.get_rng_state()
    FORMS[form].from_low_rank(random(12, 3), random(3, 8))
    FORMS[form].shell(nn.Linear(8, 12, device="meta"), {"rank": 3})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("form", "bound"), [("low_rank", 0.01), ("pivoted", 0.01)])
def test_bfloat16_costs_its_rounding_only(form, bound):
    left, right, x = random(24, 8), random(8, 16), random(5, 16)
    module = FORMS[form].from_low_rank(left, right).to(torch.bfloat16)
    exact = x @ (left @ right).T
    error = (module(x.bfloat16()).double() - exact).norm() / exact.norm()
    assert module.weight.dtype == torch.bfloat16 and error < bound


@pytest.mark.parametrize("form", FORMS)
def test_guard_is_an_empty_tensor_under_the_dense_weights_name(form):
    module = FORMS[form].from_low_rank(random(12, 3), random(3, 8))
    assert module.state_dict()["weight"].shape == (0,)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight"):
        nn.Linear(8, 12, bias=False).load_state_dict(module.state_dict(), strict=False)


def test_pivots_are_rows_of_the_weight_and_coefficients_small():
    left, right = random(40, 10), random(10, 30)
    module = Pivoted.from_low_rank(left, right)
    rows, combinations = pivot_rows(left)
    torch.testing.assert_close(module.pivots.weight, (left @ right)[rows[:10]], rtol=1e-12, atol=1e-12)
    expected = np.linalg.lstsq(left[rows[:10]].numpy().T, left[rows[10:]].numpy().T)[0].T
    np.testing.assert_allclose(combinations.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert combinations.abs().max() < 2 and sorted(rows.tolist()) == list(range(40))
    assert module.make_order().tolist() == rows.argsort().tolist()


@pytest.mark.parametrize("zeros", [1, 4, 5])
def test_pivoted_meets_a_left_factor_of_lower_rank(zeros):
    left, right = random(12, 5), random(5, 9)
    left[:, 5 - zeros :] = 0
    left = left @ random(5, 5)  # the zero columns hidden in a rotation
    torch.testing.assert_close(Pivoted.from_low_rank(left, right).dense_weight(), left @ right, rtol=1e-12, atol=1e-12)


def test_every_parameter_gets_a_gradient():
    for form in FORMS.values():
        module = form.from_low_rank(random(12, 3), random(3, 8), random(12))
        module(random(4, 8)).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_trains_after_a_first_call_in_inference_mode(form):
    module = FORMS[form].from_low_rank(random(12, 3), random(3, 8))
    with torch.inference_mode():
        module(random(4, 8))
    module(random(4, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_compiles_before_any_call(form):
    module, x = FORMS[form].from_low_rank(random(12, 3), random(3, 8)), random(4, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), copy.deepcopy(module)(x), rtol=1e-12, atol=1e-12)


def test_copies_and_is_found_by_name():
    model = nn.Sequential(nn.Linear(8, 8), Pivoted.from_low_rank(random(12, 3), random(3, 8)))
    assert compressed_layers(copy.deepcopy(model)) == {"1": {"form": "pivoted", "rank": 3}}


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"form": "cubic", "rank": 1}, "layer a.b has the unknown form 'cubic'"), ({}, "form None")]
    + [({"form": "low_rank", "rank": rank}, f"a.b has the rank {rank!r}") for rank in (0, -1, 1.5, "2", None, True)],
)
def test_an_entry_that_cannot_be_is_one_sentence(entry, message):
    with pytest.raises(SlimrankError, match=message):
        form_of("a.b", entry)


def test_a_pivoted_rank_beyond_the_outputs_is_refused():
    with pytest.raises(SlimrankError, match="4 outputs can't have rank 5"):
        Pivoted(8, 4, 5)


def test_other_modules_are_no_linears():
    assert shape_of(Conv1D(12, 8)) == shape_of(nn.Linear(8, 12)) == (12, 8)
    with pytest.raises(SlimrankError, match="Embedding can't be compressed"):
        shape_of(nn.Embedding(3, 4))


def test_table_is_keyed_by_the_forms_own_names():
    assert all(issubclass(form, Form) and form.form == name for name, form in FORMS.items())


@pytest.mark.parametrize("shape", [(40, 10), (200, 60), (7, 7)])
def test_swapped_pivots_bound_every_coefficient_and_no_row_is_lost(shape):
    left = random(*shape) * torch.logspace(-2, 2, shape[0], dtype=torch.float64)[:, None]
    rank = shape[1]
    for method, bound in ((by_swaps, 1.05), (by_qr, 2)):
        rows, combinations = method(left)
        assert sorted(rows.tolist()) == list(range(shape[0]))
        torch.testing.assert_close(combinations @ left[rows[:rank]], left[rows[rank:]], rtol=1e-9, atol=1e-9)
        assert combinations.numel() == 0 or combinations.abs().max() <= bound


def test_swaps_leave_a_left_factor_of_lower_rank_to_qr():
    assert by_swaps(random(12, 3) @ random(3, 5)) is None


@pytest.mark.parametrize("form", ["pivoted", "columns"])
def test_an_export_before_the_first_call_leaves_the_layer_whole(form):
    left, right, x = random(7, 3), random(3, 5), random(4, 5)
    if form == "columns":
        module = FORMS[form].from_columns(left[:, :2], left, right[:, 2:], torch.tensor([1, 3]))
    else:
        module = FORMS[form].from_low_rank(left, right)
    exported = torch.export.export(module, (x,), strict=False)
    expected = x @ module.dense_weight().T
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exported.module()(x), expected, rtol=1e-12, atol=1e-12)
