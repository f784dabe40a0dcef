"""The price of errors in embedding and head against the KL divergence that small errors really cause."""

import copy

import pytest
import torch
from tiny_spectra import windows

from slimrank.calibrate.evidence import calibrate
from slimrank.calibrate.needs import Needs
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.store.pieces import MemoryPieces
from slimrank.store.run import Run


def moments(model, ids):
    needs = Needs(gradients=True, labels="sampled", ends=True)
    return calibrate(Compressible(Decoder(model)), ids, needs, Run(MemoryPieces())).ends


def divergence(model, other, ids):
    with torch.no_grad():
        ours, theirs = (one(ids).logits.double().log_softmax(-1) for one in (model, other))
    return (ours.exp() * (ours - theirs)).sum(-1).mean().item()


@pytest.mark.parametrize("tied", [False, True])
def test_random_errors_cost_what_is_predicted(tiny_llama, tied):
    model = tiny_llama(num_hidden_layers=2, tie_word_embeddings=tied)
    ids = windows(model.config.vocab_size, count=24, tokens=32)
    found = moments(model, ids)
    shape, generator = model.get_input_embeddings().weight.shape, torch.Generator().manual_seed(0)
    size = 0.05 * model.get_input_embeddings().weight.std().item()
    ends = [(True, True)] if tied else [(True, False), (False, True)]
    for entry, head in ends:
        real = []
        for _ in range(8):
            other = copy.deepcopy(model)
            error = size * torch.randn(shape, generator=generator)
            place = other.get_input_embeddings() if entry else other.get_output_embeddings()
            place.weight.data += error
            real.append(divergence(model, other, ids.calibration))
        predicted = found.price(torch.full(shape, size**2), entry=entry, head=head)
        assert predicted == pytest.approx(sum(real) / len(real), rel=0.3), (entry, head)


def test_sums_are_saved_and_loaded(tiny_llama):
    model = tiny_llama(num_hidden_layers=2)
    pieces = MemoryPieces()
    ids = windows(model.config.vocab_size)
    needs = Needs(gradients=True, ends=True)
    found = calibrate(Compressible(Decoder(model)), ids, needs, Run(pieces)).ends
    assert found.tokens == ids.calibration.numel() == found.counts.sum()
    assert found.scale == pytest.approx(1)
    expected = torch.bincount(ids.calibration.flatten(), minlength=len(found.counts))
    assert torch.equal(found.counts, expected.double())
    assert 0 < found.spread.sum() < found.tokens
