import torch

from slimrank.calibrate import collect, collect_gradients
from slimrank.calibrate.shelf import on_shelves, shelve, take_up
from slimrank.model.decoder import Decoder
from slimrank.store import DiskPieces


def test_what_is_shelved_comes_back_in_float32(tiny_llama, tmp_path):
    decoder = Decoder(tiny_llama())
    ids = torch.randint(0, 320, (4, 32), generator=torch.Generator().manual_seed(0))
    moments = collect(decoder, ids, decoder.linears())
    collect_gradients(decoder, ids, decoder.linears(), moments)
    pieces = DiskPieces(tmp_path)
    shelve(moments, pieces, "all")
    again = on_shelves(DiskPieces(tmp_path), torch.device("cpu"))
    take_up(again, pieces, "all")
    assert again.leader == moments.leader and set(again.inputs) == set(moments.inputs) and len(again.blocks) == 2
    assert again.short_of_tokens() == moments.short_of_tokens()
    for name in moments.outputs:
        for kind in ("gram", "absolute"):
            one, other = (getattr(m.input_of(name), kind) for m in (again, moments))
            torch.testing.assert_close(one, other, rtol=2**-24, atol=0)
        one, other = again.outputs[name], moments.outputs[name]
        torch.testing.assert_close(one.gram, other.gram, rtol=2**-24, atol=0)
        assert torch.equal(one.fisher_rows, other.fisher_rows)
        assert (one.gradient_norm, one.fourth, one.tokens, one.windows) == (
            other.gradient_norm,
            other.fourth,
            other.tokens,
            other.windows,
        )
    assert again.blocks[1].cosine == moments.blocks[1].cosine
