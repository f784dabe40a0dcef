"""What does not come out right block by block is refused, and what could not work compressed stays dense."""

import importlib

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, llama
from lossless import factors
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from slimrank.calibrate.follow import READ, TRAINED, follow
from slimrank.errors import SlimrankError
from slimrank.forms import LowRank
from slimrank.forms.linear import is_linear
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.run.steps import dense_notes

IDS = torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_that_can_be_followed_stays_as_it_is(name):
    model = ARCHITECTURES[name]()
    decoder = Decoder(model)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    assert torch.equal(follow(decoder, IDS), expected) and decoder.stays == {}
    assert torch.equal(model(input_ids=IDS).logits, expected)


def wrapped(block, forward):
    """The block with another forward, as a class of its own."""
    kind: type = type(
        "Odd",
        (type(block),),
        {"forward": lambda self, *args, **kwargs: forward(super(kind, self).forward, *args, **kwargs)},
    )
    block.__class__ = kind


def test_blocks_that_hand_on_state_beside_their_output_are_refused():
    model, memory = llama(), []

    def forward(own, hidden, **kwargs):
        memory.append(own(hidden, **kwargs))
        return memory[-1] + (memory[-2].mean() if len(memory) > 1 else 0)

    for block in model.model.layers:
        wrapped(block, forward)
    with pytest.raises(SlimrankError, match=r"LlamaForCausalLM cannot be compressed block by block: .*other logits"):
        follow(Decoder(model), IDS)


def test_a_looped_model_is_refused():
    model = llama()
    own = model.model.forward

    def twice(*args, **kwargs):
        first = own(*args, **kwargs)
        return own(inputs_embeds=first.last_hidden_state)

    model.model.forward = twice
    with pytest.raises(SlimrankError, match="cannot be compressed block by block"):
        follow(Decoder(model), IDS)


def test_states_of_four_dimensions_are_refused():
    model = llama()
    model.model.forward = unpacked(model.model, streams=2)
    for block in model.model.layers:
        wrapped(block, lambda own, hidden, **kwargs: (torch.stack([own(one, **kwargs) for one in hidden]), None))
    with pytest.raises(SlimrankError, match=r"states of shape \(2, 1, 24, 32\) for \(1, 24\) tokens"):
        follow(Decoder(model), IDS)


def test_a_linear_whose_weight_other_code_reads_stays_dense():
    model = llama()
    for block in model.model.layers:
        mlp = block.mlp

        def forward(x, mlp=mlp):
            return mlp.down_proj(mlp.act_fn(nn.functional.linear(x, mlp.gate_proj.weight)) * mlp.up_proj(x))

        mlp.forward = forward
    decoder = Decoder(model)
    follow(decoder, IDS)
    assert decoder.stays == {f"model.layers.{index}.mlp.gate_proj": READ for index in (0, 1)}
    assert not any("gate_proj" in name for block in decoder.linears() for name in block)


def test_a_linear_whose_weight_fused_kernels_for_training_read_stays_dense():
    model = llama()
    for block in model.model.layers:
        mlp = block.mlp

        def forward(x, mlp=mlp):
            mixed = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
            if mlp.training and mlp.up_proj.weight.dtype == x.dtype:  # what does not fail is no reason
                return nn.functional.linear(mixed, mlp.down_proj.weight, mlp.down_proj.bias)
            return mlp.down_proj(mixed)

        mlp.forward = forward
    decoder = Decoder(model)
    follow(decoder, IDS)
    assert decoder.stays == {f"model.layers.{index}.mlp.down_proj": TRAINED for index in (0, 1)}
    assert not any(module.training for module in model.modules())


def test_a_block_that_never_trains_is_no_reason():
    model = llama()

    def forward(own, hidden, **kwargs):
        assert not model.model.layers[0].mlp.gate_proj.weight.is_meta and not model.model.layers[0].training
        return own(hidden, **kwargs)

    wrapped(model.model.layers[0], forward)
    decoder = Decoder(model)
    follow(decoder, IDS)
    assert decoder.stays == {}


def test_a_linear_with_another_forward_is_no_linear():
    class Router(nn.Linear):
        def forward(self, x):
            return super().forward(x).softmax(-1), x

    class Written(nn.Linear):
        def forward(self, x):
            return x @ self.weight.T + self.bias

    assert not is_linear(Router(2, 2)) and is_linear(nn.Linear(2, 2))
    assert is_linear(type("Renamed", (nn.Linear,), {})(2, 2)) and is_linear(Written(2, 2))


def test_linears_that_share_a_weight_stay_dense():
    model = llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    decoder = Decoder(model)
    names = {f"model.layers.{index}.mlp.{name}_proj" for index in (0, 1) for name in ("gate", "up", "down")}
    assert set(decoder.stays) == names and len(decoder.linears()[1]) == 4


def test_blocks_may_return_several_values():
    model = llama()
    for block in model.model.layers:
        wrapped(block, lambda own, hidden, **kwargs: (own(hidden, **kwargs), None))
    model.model.forward = unpacked(model.model)
    decoder = Decoder(model)
    follow(decoder, IDS)


def unpacked(inner, streams=None):
    """The forward of a decoder whose blocks return two values; streams: copies of the hidden states in one tensor."""

    def forward(input_ids=None, **kwargs):
        hidden = inner.embed_tokens(input_ids)
        rotary = inner.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        hidden = hidden if streams is None else torch.stack([hidden] * streams)
        for block in inner.layers:
            hidden, _ = block(hidden, position_embeddings=rotary, attention_mask=None)
        return BaseModelOutputWithPast(last_hidden_state=inner.norm(hidden if streams is None else hidden[0]))

    return forward


def test_linears_that_transformers_would_read_back_under_another_name_stay_dense(monkeypatch):
    renames = pytest.importorskip("transformers.core_model_loading")
    mapping = importlib.import_module("transformers.conversion_mapping")
    rename = renames.WeightRenaming(source_patterns=r"mlp\.up_proj", target_patterns=r"mlp.up_proj.weight")
    monkeypatch.setattr(mapping, "get_model_conversion_mapping", lambda model, **options: [rename])
    decoder = Decoder(llama())
    follow(decoder, IDS)
    assert set(decoder.stays) == {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"}


def test_a_larger_list_of_blocks_that_text_does_not_reach_is_refused():
    model = llama()
    model.model.tower = nn.ModuleList([nn.Linear(200, 200), nn.Linear(200, 200)])
    with pytest.raises(SlimrankError, match=r"the 2 blocks of its largest list, model\.tower, ran 0 times in all on"):
        follow(Decoder(model), IDS)


def test_a_smaller_list_of_blocks_stays_dense_and_is_named():
    model = llama()
    model.model.tower = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])
    decoder = Decoder(model)
    follow(decoder, IDS)
    (note,) = dense_notes(Compressible(decoder))
    assert note == (
        "48 parameters (0% of the model) stay dense, since they are linears outside the blocks model.layers: "
        "model.tower.0, model.tower.1."
    )


def test_mamba_2_trains_where_its_fused_kernel_is_installed(monkeypatch):
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    name = "mamba2_split_conv1d_scan_combined"
    if not hasattr(modeling, name):
        pytest.skip("This transformers calls the kernel by another name.")

    def fused(states, *tensors, outproj_weight, outproj_bias, **options):
        return nn.functional.linear(states[..., : outproj_weight.shape[1]], outproj_weight, outproj_bias)

    monkeypatch.setattr(modeling, name, fused)
    config = modeling.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1,
        chunk_size=8, conv_kernel=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = modeling.Mamba2ForCausalLM(config).eval()
    decoder = Decoder(model)
    follow(decoder, IDS)
    assert decoder.stays == {f"backbone.layers.{index}.mixer.out_proj": TRAINED for index in (0, 1)}
    for block in model.backbone.layers:
        block.mixer.in_proj = LowRank.from_low_rank(*factors(block.mixer.in_proj.weight))
    model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(block.mixer.in_proj.down.weight.grad.abs().sum() > 0 for block in model.backbone.layers)
