import torch
from collected import collect, collect_gradients

from slimrank.calibrate.shelf import forget_input_grams, on_shelves, put_on_shelf, shelve
from slimrank.model.decoder import Decoder
from slimrank.store.pieces import DiskPieces


def test_what_is_shelved_comes_back_in_float32(tiny_llama, tmp_path):
    decoder = Decoder(tiny_llama())
    ids = torch.randint(0, 320, (4, 32), generator=torch.Generator().manual_seed(0))
    moments = collect(decoder, ids, decoder.linears(), blocks=True)
    collect_gradients(decoder, ids, decoder.linears(), moments)
    pieces = DiskPieces(tmp_path)
    shelve(moments, pieces, "all")
    again = on_shelves(DiskPieces(tmp_path), torch.device("cpu"))
    put_on_shelf(again, pieces, "all")
    assert again.leader == moments.leader and set(again.inputs) == set(moments.inputs) and len(again.blocks) == 2
    assert again.short_of_tokens() == moments.short_of_tokens()
    for name in moments.outputs:
        one, other = again.input_of(name), moments.input_of(name)
        torch.testing.assert_close(one.gram(), other.gram(), rtol=2**-24, atol=0)
        assert one.absolute.equal(other.absolute) and one.tokens == other.tokens
        one, other = again.outputs[name], moments.outputs[name]
        torch.testing.assert_close(one.gram(), other.gram(), rtol=2**-24, atol=0)
        assert one.fisher_rows.equal(other.fisher_rows) and one.fourth.equal(other.fourth)
        assert (one.gradient_norm, one.tokens, one.windows) == (other.gradient_norm, other.tokens, other.windows)
    one, other = again.blocks[1], moments.blocks[1]
    torch.testing.assert_close(one.gram(), other.gram(), rtol=2**-24, atol=0)
    assert one.cosine.equal(other.cosine) and one.tokens == other.tokens


def test_without_the_grams_of_the_inputs_the_rest_is_still_there(tiny_llama, tmp_path):
    decoder = Decoder(tiny_llama())
    ids, pieces = torch.randint(0, 320, (4, 32), generator=torch.Generator().manual_seed(0)), DiskPieces(tmp_path)
    moments = collect(decoder, ids, decoder.linears(), blocks=True)
    shelve(moments, pieces, "all")
    forget_input_grams(pieces, "all")
    again = on_shelves(DiskPieces(tmp_path), torch.device("cpu"))
    put_on_shelf(again, pieces, "all")
    for name, one in again.inputs.items():
        assert one.absolute.equal(moments.inputs[name].absolute) and not one.sums.packed.numel()
    assert again.short_of_tokens() == moments.short_of_tokens()
    torch.testing.assert_close(again.blocks[0].gram(), moments.blocks[0].gram(), rtol=2**-24, atol=0)
