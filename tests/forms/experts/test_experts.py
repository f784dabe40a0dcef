"""Fused experts, the same as linears, and as stacks of factors."""

import copy

import pytest
import torch
from architectures import VOCABULARY, build, mixtures
from torch import nn

from slimrank.errors import SlimrankError
from slimrank.forms import Dense, Experts, LowRank, Pivoted, compressed_layers, link
from slimrank.forms.experts import Stack, fold, layout_of, unfold, unfolded
from slimrank.forms.experts.entries import packed, unpacked
from slimrank.forms.linear import bias_of, weight_of
from slimrank.forms.shared import SIDES
from slimrank.model.modules import set_module
from slimrank.run.quantize import quantized

FAMILIES = mixtures()
fuses = pytest.mark.skipif(
    layout_of(build(FAMILIES["Mixtral"]).model.layers[0].mlp.experts if hasattr(
        build(FAMILIES["Mixtral"]).model.layers[0], "mlp") else nn.Linear(1, 1)) is None,
    reason="transformers 4 has lists of linears",
)  # fmt: skip
pytestmark = fuses


@pytest.fixture
def ids():
    return torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def truncated(linear, rank, kind=LowRank):
    left, values, right = torch.linalg.svd(weight_of(linear).detach(), full_matrices=False)
    return kind.from_low_rank(left[:, :rank] * values[:rank], right[:rank], bias_of(linear))


@pytest.mark.parametrize("family", FAMILIES)
def test_as_linears_they_compute_the_same_and_come_back(family, ids):
    model = build(FAMILIES[family])
    before, names, expected = dict(model.named_modules()), set(model.state_dict()), logits(model, ids)
    unfold(model)
    assert unfolded(model)
    assert not [name for name, p in model.named_parameters() if p.ndim == 3 and "conv" not in name]
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5 * expected.std().item())
    fold(model)
    assert set(model.state_dict()) == names
    assert all(model.get_submodule(name) is module for name, module in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_stacks_compute_what_the_layers_do(family, ids):
    model = build(FAMILIES[family])
    unfold(model)
    for name, experts in unfolded(model).items():
        for number in range(experts.layout.experts):
            for role, linear in experts.expert(number).items():
                if number:  # the first expert stays dense
                    kind = (LowRank, Pivoted)[number % 2]
                    set_module(model, f"{name}.{number}.{role}", truncated(linear, 3 * number, kind))
    expected = logits(model, ids)
    fold(model)
    assert not unfolded(model)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5 * expected.std().item())


def share(model, name, experts, role, side, rank):
    """Let the experts' matrices of a role share a factor, made up, in the model `name` is in."""
    one = experts.expert(0)[role]
    rows, columns = one.out_features, one.in_features
    generator = torch.Generator().manual_seed(rank)
    factors = {
        "down": torch.randn(rank, columns, generator=generator),
        "up": torch.randn(rows, rank, generator=generator),
    }
    own = "up" if side == "input" else "down"
    for number in range(experts.layout.experts):
        factors |= {own: torch.randn(factors[own].shape, generator=generator) / rank}
        leader = f"0.{role}" if number else None
        linear = experts.expert(number)[role]
        set_module(model, f"{name}.{number}.{role}", SIDES[side].member(factors, bias_of(linear), leader))


@pytest.mark.parametrize("sides", [("input", None), (None, "output"), ("input", "output"), ("output", "input")])
@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss", "Llama4Text", "NemotronH"])
def test_experts_that_share_a_factor_compute_what_their_dense_weights_do(family, sides, ids):
    model = build(FAMILIES[family])
    plain = copy.deepcopy(model)
    unfold(model)
    for name, experts in unfolded(model).items():
        for role, side in zip(experts.layout.roles, sides, strict=True):
            if side:
                share(model, name, experts, role, side, 5)
    link(model)
    one_by_one = logits(model, ids)
    fold(model)
    found = logits(model, ids)
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts):
            plain.set_submodule(name, module.dense(plain.get_submodule(name), torch.float32))
    expected = logits(plain, ids)
    for other in (one_by_one, found):
        torch.testing.assert_close(other, expected, rtol=0, atol=1e-4 * expected.std().item())


def test_a_shared_factor_is_stored_and_counted_once_and_read_again():
    model = build(FAMILIES["Qwen3Moe"])
    unfold(model)
    (name, experts), *_ = unfolded(model).items()
    for role, side in zip(experts.layout.roles, ("input", "output"), strict=True):
        share(model, name, experts, role, side, 5)
    link(model)
    fold(model)
    layer = model.get_submodule(name)
    width, inner, number = 32, 24, 4
    assert layer.count_parameters() == 5 * (width + number * 2 * inner) + 5 * (width + number * inner)
    assert layer.ups.down.numel() == 5 * width and layer.downs.up.numel() == width * 5
    assert layer.entry()["ups"] == {"form": "shared_input", "rank": 5, "leader": [None, *["0.gate_up_proj"] * 3]}
    again = Experts.shell(build(FAMILIES["Qwen3Moe"]).get_submodule(name), layer.entry())
    again.load_state_dict(layer.state_dict())
    x, index = torch.randn(6, width), torch.tensor([[0, 1], [1, 3], [2, 0], [3, 2], [1, 2], [0, 3]])
    given = x, index, torch.rand(6, 2)
    torch.testing.assert_close(again(*given), layer(*given), rtol=0, atol=0)


def test_a_member_without_its_leader_is_an_error():
    lone = SIDES["input"].member({"down": torch.ones(2, 3), "up": torch.ones(4, 2)}, None, "0.up")
    with pytest.raises(SlimrankError, match="linked"):
        lone(torch.ones(1, 3))
    with pytest.raises(SlimrankError, match="not all there"):
        SIDES["input"].link_members("a", [lone])


def test_views_share_memory_with_the_fused_parameters():
    model = build(FAMILIES["GptOss"])
    fused = model.model.layers[0].mlp.experts
    unfold(model)
    linear = model.get_submodule("model.layers.0.mlp.experts.2.gate_up_proj")
    with torch.no_grad():
        linear.weight[5, 7] = 11
        linear.bias[3] = 13
    assert fused.gate_up_proj[2, 7, 5] == 11
    assert fused.gate_up_proj_bias[2, 3] == 13


def test_a_module_that_computes_otherwise_is_left_alone():
    class Doubled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
            self.down_proj = nn.Parameter(torch.randn(3, 4, 4))
            self.act_fn, self.factor = nn.SiLU(), factor

        def forward(self, hidden_states, top_k_index, top_k_weights):
            out = torch.zeros_like(hidden_states)
            for token, (experts, weights) in enumerate(zip(top_k_index, top_k_weights, strict=True)):
                for expert, weight in zip(experts, weights, strict=True):
                    gate, up = (self.gate_up_proj[expert] @ hidden_states[token]).chunk(2)
                    out[token] += self.factor * weight * (self.down_proj[expert] @ (self.act_fn(gate) * up))
            return out

    assert layout_of(Doubled(1)).roles == ("gate_up_proj", "down_proj")
    other = type("Other", (Doubled,), {})  # what is tried is known by class
    assert layout_of(other(2)) is None


def test_a_stack_holds_each_expert_in_its_form():
    torch.manual_seed(0)
    dense = [nn.Linear(8, 12) for _ in range(4)]
    none = LowRank.from_low_rank(torch.zeros(12, 0), torch.zeros(0, 8), torch.ones(12))
    members = [dense[0], truncated(dense[1], 2), truncated(dense[2], 5, Pivoted), none]
    stack = Stack.of(members, (12, 8))
    x = torch.randn(7, 8)
    with torch.no_grad():
        expected = torch.cat([m(part) for m, part in zip(members, x.split([2, 0, 4, 1]), strict=True)])
        torch.testing.assert_close(stack(x, [2, 0, 4, 1]), expected)
    assert stack.down.shape == (2 * 8,)
    assert stack.pivots.shape == (5 * 8,)
    assert stack.others.shape == (7 * 5,)
    assert stack.count_parameters() == 96 + 2 * 20 + (5 * 8 + 7 * 5 + 2)
    for number, member in enumerate(members):
        again = stack.member(number)
        assert all(torch.equal(t, again.state_dict()[key]) for key, t in member.state_dict().items())


def test_entries_are_packed_and_unpacked():
    entries = [{"form": "low_rank", "rank": 3}, {"form": "dense"}, {"form": "low_rank", "rank": 3}]
    assert packed(entries) == {"form": ["low_rank", "dense", "low_rank"], "rank": [3, None, 3]}
    assert unpacked(packed(entries), 3) == entries
    assert packed(entries[:1] * 2) == {"form": "low_rank", "rank": 3}
    with pytest.raises(SlimrankError, match="key rank of an experts layer"):
        unpacked({"form": "low_rank", "rank": [1, 2]}, 3)


def test_the_layer_is_built_again_from_its_entry_moves_and_trains(ids):
    model = build(FAMILIES["Qwen3Moe"])
    fused = copy.deepcopy(model.model.layers[0].mlp.experts)
    unfold(model)
    for name, experts in unfolded(model).items():
        for number in range(4):
            linear = experts.expert(number)["down_proj"]
            set_module(model, f"{name}.{number}.down_proj", truncated(linear, 4 + number, Pivoted))
    fold(model)
    layer = model.model.layers[0].mlp.experts
    again = Experts.shell(fused, layer.entry())
    again.load_state_dict(layer.state_dict())
    assert layer.entry() == again.entry() == compressed_layers(model)["model.layers.0.mlp.experts"]
    hidden, index = torch.randn(5, 32), torch.tensor([[0, 1], [1, 2], [3, 0], [1, 3], [4, 1]])  # 4 stands for none
    torch.testing.assert_close(again(hidden, index, torch.ones(5, 2)), layer(hidden, index, torch.ones(5, 2)))
    expected = logits(model, ids)
    moved = copy.deepcopy(model).to(torch.float64)
    torch.testing.assert_close(logits(moved, ids).float(), expected, rtol=0, atol=1e-4)
    model(input_ids=ids, labels=ids).loss.backward()
    assert layer.downs.others.grad.abs().sum() > 0


def test_experts_of_several_widths_lie_side_by_side():
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(24, 8, generator=generator), torch.randn(8, 32, generator=generator)
    plain, dense = LowRank.from_low_rank(left, right), Dense.from_dense(left @ right)
    members = [plain, quantized(plain, 8), quantized(plain, 4, 8), quantized(dense, 4, 16), quantized(dense, 3)]
    stack = Stack.of(members, (24, 32))
    x, counts = torch.randn(10, 32, generator=generator), [2, 3, 0, 4, 1]
    expected = torch.cat([member(own) for member, own in zip(members, x.split(counts), strict=True)])
    with torch.no_grad():
        torch.testing.assert_close(stack(x, counts), expected)
        for member, again in zip(members, stack.members(), strict=True):
            torch.testing.assert_close(again(x), member(x))
    assert {key for key in stack.state_dict() if key.startswith("down")} == {
        "down", "down_int8", "down_uint8", "down_scale"
    }  # fmt: skip
