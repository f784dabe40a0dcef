import torch

from slimrank.model.decoder import Decoder
from slimrank.model.fingerprint import fingerprint
from slimrank.store.weights import sample


def test_the_fingerprint_sees_settings_and_every_column(tiny_llama):
    model = tiny_llama(hidden_size=64)
    decoder = Decoder(model)
    before = fingerprint(decoder)
    assert before == fingerprint(Decoder(model))
    model.config.rms_norm_eps = 1e-2
    assert fingerprint(decoder) != before
    assert set(sample(torch.arange(64.0).repeat(512, 1), 256).tolist()) == set(range(64))
