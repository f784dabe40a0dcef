import pytest
import torch
from lossless import factors
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms import FORMS, Form, KeptColumns, LowRank, Pivoted
from slimrank.forms.joint import joint_layers
from slimrank.serve import few_tokens
from slimrank.serve.shards import Dense, FusedParts, require_served

IN, OUT = 12, 16


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    left, right, kept = torch.randn(OUT, 5), torch.randn(5, IN), torch.tensor([1, 4, 6, 11])
    return {
        "dense": nn.Linear(IN, OUT, bias=False),
        "low_rank": LowRank.from_low_rank(left, right),
        "pivoted": Pivoted.from_low_rank(left, right),
        "square": Pivoted.from_low_rank(*factors(torch.randn(8, IN))),
        "columns": KeptColumns.from_columns(torch.randn(OUT, 4), left, right[:, :8], kept),
    }


def group() -> dict[str, nn.Module]:
    """Three layers that share the first one's pivots, and a dense one."""
    torch.manual_seed(0)
    members = joint_layers(torch.randn(29, 7), torch.randn(7, IN), (16, 4, 9), [None] * 3, "q")
    return dict(zip("qkv", members, strict=True)) | {"dense": nn.Linear(IN, 5, bias=False)}


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """A layer's tensors as a server reads them: without the empty guard."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.numel()}


def read(module: nn.Module) -> Form | Dense:
    """The layer as built anew from what a checkpoint has of it."""
    if not isinstance(module, Form):
        return Dense(module.weight)
    return type(module).from_stored("a", module.in_features, module.entry(), tensors(module))


def few(part: Form, bits: int, group: int | None = None) -> Form:
    """The form in random numbers of few bits."""
    part.use_bits(bits, group)
    for factor in part.present_factors().values():
        factor.weight.copy_(torch.randint(-100, 100, factor.weight.shape) if bits == 8 else factor.weight.random_(256))
        factor.scale.uniform_(0.1, 0.2)
    return part


def fused(
    parts: dict[str, nn.Module],
    rows: list[Tensor],
    columns: Tensor,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
):
    shards = {name: read(part).shard(own, columns) for (name, part), own in zip(parts.items(), rows, strict=True)}
    return FusedParts(shards, torch.device(device), dtype)


@torch.no_grad()
def test_members_of_a_unit_share_their_leaders_factor_also_in_pieces():
    parts, x = group(), torch.randn(3, IN)
    pieces = [torch.tensor([5, 0, 3]), torch.tensor([2]), torch.arange(4, 9), torch.arange(5)]
    for rows in ([torch.arange(part.out_features) for part in parts.values()], pieces):
        whole = fused(parts, rows, torch.arange(IN))
        expected = torch.cat([part(x)[:, own] for part, own in zip(parts.values(), rows, strict=True)], -1)
        torch.testing.assert_close(whole(x), expected, rtol=1e-5, atol=1e-5)
        assert [len(stack.weight) for stack in whole.stacks] == [7 + 5]
        halves = [fused(parts, rows, columns)(x[:, columns]) for columns in torch.arange(IN).split(6)]
        torch.testing.assert_close(sum(halves), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_forms_side_by_side_are_the_layers_themselves():
    parts, x = layers() | group(), torch.randn(3, 2, IN)
    whole = fused(parts, [torch.arange(len(part(x[0, 0]))) for part in parts.values()], torch.arange(IN))
    torch.testing.assert_close(whole(x), torch.cat([part(x) for part in parts.values()], -1), rtol=1e-5, atol=1e-5)
    assert [len(stack.weight) for stack in whole.stacks] == [5 + 5 + 8 + 7 + 5]  # one for all but the gathering part


@torch.no_grad()
def test_compiles_as_one_graph():
    parts, x = layers() | group(), torch.randn(3, IN)
    whole = fused(parts, [torch.arange(len(part(x[0]))) for part in parts.values()], torch.arange(IN))
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), whole(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", layers())
@torch.no_grad()
def test_rows_split_over_devices(name):
    part, x = layers()[name], torch.randn(3, IN)
    rows = torch.arange(len(part(x[0]))).split(len(part(x[0])) // 4)
    split = [fused({"a": part}, [own], torch.arange(IN))(x) for own in (*rows[:2], torch.cat(rows[2:]))]
    torch.testing.assert_close(torch.cat(split, -1), part(x), rtol=1e-5, atol=1e-5)
    mixed = torch.tensor([5, 0, 3])  # fused on disk: a device's rows need not follow each other
    torch.testing.assert_close(
        fused({"a": part}, [mixed], torch.arange(IN))(x), part(x)[:, mixed], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", layers())
@torch.no_grad()
def test_columns_split_over_devices_add_up(name):
    part, x = layers()[name], torch.randn(3, IN)
    rows = torch.arange(len(part(x[0])))
    split = [fused({"a": part}, [rows], own)(x[:, own]) for own in torch.arange(IN).split(4)]
    torch.testing.assert_close(sum(split), part(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("low_rank", 8),
        ("low_rank", 4),
        ("pivoted", 8),
        ("columns", 8),
        ("columns", 4),
        ("dense", 8),
        ("dense", 4),
        ("dense", 3),
    ],
)
@torch.no_grad()
def test_quantized_factors_stay_whole_numbers(name, bits):
    part = few(
        FORMS["dense"].from_low_rank(torch.randn(OUT, 3), torch.randn(3, IN)) if name == "dense" else layers()[name],
        bits,
    )
    rows, x = torch.tensor([5, 0, 3]), torch.randn(3, IN)
    split = [fused({"a": part}, [rows], own) for own in torch.arange(IN).split(4)]
    sums = sum(one(x[:, own]) for one, own in zip(split, torch.arange(IN).split(4), strict=True))
    torch.testing.assert_close(sums, part(x)[:, rows], rtol=1e-5, atol=1e-3)
    for one in split:
        kinds = {tensor.dtype for key, tensor in one.state_dict().items() if key.endswith("weight")}
        assert kinds == {torch.int8 if bits == 8 else torch.uint8}


@torch.no_grad()
def test_factors_of_one_width_and_group_are_one_product():
    torch.manual_seed(0)
    left, right, wide = torch.randn(OUT, 5), torch.randn(5, 64), torch.randn(7, 64)
    parts = {
        "a": few(LowRank.from_low_rank(left, right), 8),
        "b": few(FORMS["dense"].from_dense(wide), 4),
        "c": few(Pivoted.from_low_rank(left, right), 8),
        "d": nn.Linear(64, 9, bias=False),
        "e": few(FORMS["dense"].from_dense(wide), 4, 64),
        "f": few(LowRank.from_low_rank(left, right), 4),
    }
    x = torch.randn(3, 64)
    whole = fused(parts, [torch.arange(len(part(x[0]))) for part in parts.values()], torch.arange(64))
    assert whole.sizes == [[5, 5], [7, 5], [9], [7]]
    torch.testing.assert_close(whole(x), torch.cat([part(x) for part in parts.values()], -1), rtol=1e-4, atol=1e-2)
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x), whole(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_a_shard_of_every_form_is_its_layer(name):
    layer, x = FORMS[name].from_low_rank(torch.randn(OUT, 3), torch.randn(3, IN)), torch.randn(2, IN)
    rows = torch.randperm(OUT)[:9]
    split = [fused({"a": layer}, [rows], own)(x[:, own]) for own in (torch.arange(0, IN, 2), torch.arange(1, IN, 2))]
    torch.testing.assert_close(sum(split), layer(x)[:, rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_tensors_that_are_not_the_entrys_are_one_sentence(name):
    layer = FORMS[name].from_low_rank(torch.randn(OUT, 3), torch.randn(3, IN))
    for wrong in ({}, tensors(layer) | {f"{layer.factors[0]}.weight": torch.randn(2, 2)}):
        with pytest.raises(SlimrankError, match=r"tensors of the layer q_proj are not those of its entry \{'form'"):
            type(layer).from_stored("q_proj", IN, layer.entry(), wrong)


def test_takes_the_dtype_asked_for():
    module = fused({"a": layers()["pivoted"]}, [torch.arange(OUT)], torch.arange(IN), torch.bfloat16)
    assert module(torch.randn(2, IN, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("tokens", [3, 70])
@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_a_servers_fused_layer_is_one_operator_for_any_number_of_tokens(tokens, whole, monkeypatch):
    from interpreted import DEVICE  # skips where no kernel runs

    parts, x = layers() | group(), torch.randn(tokens, IN)
    rows = [torch.arange(len(part(x[0]))) for part in parts.values()]
    rows = rows if whole else [own[torch.randperm(len(own))[: len(own) // 2 + 1]] for own in rows]
    expected = torch.cat([part(x)[:, own] for part, own in zip(parts.values(), rows, strict=True)], -1)
    monkeypatch.setattr(few_tokens, "DEVICE", DEVICE)
    halves = [fused(parts, rows, columns, device=DEVICE) for columns in torch.arange(IN).split(IN if whole else 7)]
    assert all(half.kernels for half in halves)
    pieces = x.to(DEVICE).split(IN if whole else 7, -1)
    found = sum(half(piece) for half, piece in zip(halves, pieces, strict=True))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(halves[0], fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(pieces[0]), halves[0](pieces[0]), rtol=1e-5, atol=1e-5)


def test_what_a_server_has_no_place_for_is_refused():
    require_served({"a": {"form": "low_rank", "rank": 2, "bits": 4}, "e": {"form": "embedding", "bits": 8}})
    with pytest.raises(SlimrankError, match="vLLM's fused experts take no factors, and x is compressed"):
        require_served({"x": {"form": "experts"}})
