"""Initialisers that would fail on compressed layers are known before the work."""

import pytest
import torch
from architectures import llama
from transformers import AutoModelForCausalLM, RecurrentGemmaConfig

from slimrank.calibrate.follow import INITIALISED, follow
from slimrank.errors import SlimrankError
from slimrank.forms import LowRank
from slimrank.model.decoder import Decoder
from slimrank.model.initializers import failing_initializers

IDS = torch.arange(3, 35)[None]
GATES = {f"model.layers.{index}.mlp.gate_proj" for index in (0, 1)}


def names(model):
    return [name for block in Decoder(model).linears() for name in block]


@pytest.fixture
def initialised(monkeypatch):
    """initialised(kind, read): modules of a class named `kind` are initialised by `read(module)`."""

    def change(kind, read):
        model, own = llama(), type(llama())._init_weights

        def init(self, module):
            read(module) if type(module).__name__ == kind else own(self, module)

        for owner in (type(model), type(model.model)):
            monkeypatch.setattr(owner, "_init_weights", init)
        return model

    return change


def test_a_model_of_which_all_can_be_initialised_is_compressed_whole():
    assert failing_initializers(llama(), names(llama())) == set()


def test_linears_whose_weight_an_initialiser_reads_stay_dense(initialised):
    model = initialised("LlamaMLP", lambda mlp: mlp.gate_proj.weight[0, 0])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    every = {name for name in names(model) if ".mlp." in name}
    assert failing_initializers(model, names(model)) == every
    decoder = Decoder(model)
    follow(decoder, IDS)
    assert decoder.stays == dict.fromkeys(every, INITIALISED)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


def test_an_initialiser_that_reads_a_bias_reads_it_from_a_compressed_layer(initialised):
    model = initialised("LlamaMLP", lambda mlp: mlp.gate_proj.bias)
    assert failing_initializers(model, names(model)) == set()
    layer = LowRank(4, 3, 2)
    assert layer.bias is layer.up.bias and LowRank(4, 3, 2, bias=False).bias is None


def test_an_initialiser_that_fails_for_no_linear_is_refused(initialised):
    def read(norm):
        raise ValueError("no factors here")

    def forgetful(model):
        return [read for module in model.modules() if isinstance(module, LowRank)]

    model = initialised("LlamaModel", lambda inner: read(inner) if forgetful(inner) else None)
    with pytest.raises(
        SlimrankError, match=r"fails to initialise its model beside compressed layers \(no factors here\)"
    ):
        failing_initializers(model, names(model))


def test_recurrent_gemma_can_be_initialised():
    config = RecurrentGemmaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, lru_width=32, vocab_size=320
    )
    model = AutoModelForCausalLM.from_config(config)
    assert failing_initializers(model, names(model)) == set()
