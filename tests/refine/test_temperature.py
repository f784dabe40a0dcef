import pytest
import torch
from architectures import ARCHITECTURES, build
from tiny_spectra import spectra, windows
from transformers import OPTConfig

from slimrank.allocate.measure import cut
from slimrank.calibrate.stream import final_states
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.model.decoder import Decoder
from slimrank.model.modules import set_module
from slimrank.refine.base import Cuts
from slimrank.refine.temperature import Gain, Temperature, final_norm, lowest
from slimrank.store.run import Run

NONE = Cuts(LowRankFactorizer(), {})  # what is cut shows in the model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_gain_scales_the_norms_output_and_nothing_else_is_found(name):
    decoder = Decoder(ARCHITECTURES[name]())
    states = final_states(decoder, windows(decoder.model.config.vocab_size).held_out)
    norm = final_norm(decoder, states)
    x = states.hidden[0]
    before, gain = norm(x), Gain(norm, x)
    torch.testing.assert_close(norm(x), before)
    gain.scale(0.7)
    torch.testing.assert_close(norm(x), 0.7 * before, rtol=1e-4, atol=1e-5)
    head = decoder.head(states.ids[0], x)
    with torch.no_grad():
        logits = decoder.model.get_output_embeddings()(norm(x))
    softcap = getattr(decoder.model.config, "final_logit_softcapping", None)
    torch.testing.assert_close(head, softcap * (logits / softcap).tanh() if softcap else logits, rtol=1e-4, atol=1e-4)


def test_takes_the_factor_of_the_least_divergence(tiny_llama):
    model = tiny_llama()
    made = spectra(model)
    ids = made.evidence.windows.held_out
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)  # sure enough of itself for the temperature to matter
        dense = model(input_ids=ids).logits.log_softmax(-1)
    for unit in made.curves:
        set_module(model, unit.leader, cut(made, unit, 8)[unit.leader])
    norm = model.model.norm

    @torch.no_grad()
    def divergence():
        ours = model(input_ids=ids).logits.log_softmax(-1)
        return (dense.exp() * (dense - ours)).sum(-1).mean().item()

    norm.weight.data.mul_(1.2)  # by an earlier refiner
    before, kept = divergence(), norm.weight.detach().clone()
    notes = Temperature().refine(made, NONE, Run())
    factor = (norm.weight / kept).mean().item()
    assert notes == [f"Temperature: the head's input is scaled by {factor:.3f}."]
    assert 0.15 < factor < 0.9
    found, around = divergence(), []
    for other in (factor - 0.04, factor + 0.04):
        norm.weight.data.copy_(kept * other)
        around.append(divergence())
    assert found < before and found < min(around)


def test_the_lowest_point_of_a_parabola():
    places = (0.5, 0.6, 0.7, 0.8)
    assert lowest(places, [(p - 0.63) ** 2 for p in places]) == pytest.approx(0.63)
    assert lowest(places, [1.0, 2.0, 3.0, 4.0]) == 0.5


def test_a_model_without_a_norm_before_the_head_stays_as_it_is():
    config = OPTConfig(
        vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, do_layer_norm_before=False,
    )  # fmt: skip
    model = build(config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    notes = Temperature().refine(spectra(model), NONE, Run())
    assert notes == ["Temperature unchanged: the model has no norm before its head."]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
