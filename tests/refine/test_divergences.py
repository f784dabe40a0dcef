import torch
from tiny_spectra import windows

from slimrank.calibrate.stream import final_states
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.numerics.losses import scaled_divergences
from slimrank.refine.divergences import logits_of, mean_divergences


def test_are_the_whole_models(tiny_llama):
    decoder, ids = Decoder(tiny_llama()), windows(320).held_out
    model = decoder.model
    with torch.no_grad():
        dense = model(ids).logits.log_softmax(-1)
    streams, expected = [], []
    for scale in (1.0, 0.9, 0.8):
        for linear in Compressible(decoder).linears.values():
            linear.weight.data.mul_(scale)
        streams.append(final_states(decoder, ids))
        with torch.no_grad():
            expected.append((dense.exp() * (dense - model(ids).logits.log_softmax(-1))).sum(-1).mean())

    def summed(batch, part, target):
        return [scaled_divergences(logits_of(stream, batch, part), target, [1.0]).item() for stream in streams]

    found = mean_divergences(Compressible(decoder), streams[0], summed)
    torch.testing.assert_close(torch.tensor(found), torch.stack(expected), rtol=1e-3, atol=1e-6)
    assert abs(found[0]) < 1e-6 < found[1] < found[2]
