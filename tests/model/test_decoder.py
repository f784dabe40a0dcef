import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY

from slimrank.errors import UsageError
from slimrank.forms.linear import is_linear
from slimrank.model.decoder import Decoder


@pytest.fixture
def ids():
    return torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_block_by_block_gives_the_whole_models_logits(name, ids):
    model = ARCHITECTURES[name]()
    expected = model(input_ids=ids).logits
    decoder = Decoder(model)
    hidden, calls = decoder.enter(ids)
    for index in range(len(decoder)):
        hidden = decoder.run(index, hidden, calls[index])
    torch.testing.assert_close(decoder.head(ids, hidden), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=0)  # nothing stays replaced


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_linears_are_all_those_inside_the_blocks(name):
    decoder = Decoder(ARCHITECTURES[name]())
    output = decoder.model.get_output_embeddings()
    expected = {n for n, m in decoder.model.named_modules() if is_linear(m) and m is not output}
    assert {n for block in decoder.linears() for n in block} == expected


def test_a_filter_chooses_and_one_that_matches_nothing_is_an_error(tiny_llama):
    decoder = Decoder(tiny_llama())
    chosen = decoder.linears(lambda name, module: module.weight.shape[0] == 48)
    assert [len(block) for block in chosen] == [2, 2]
    with pytest.raises(UsageError, match="leave none"):
        decoder.linears(lambda name, module: False)


def test_fused_experts_are_named(ids):
    outside = Decoder(ARCHITECTURES["mixtral"]()).outside_linears()
    if outside:  # transformers 5 fuses experts, 4 keeps them as linears
        assert all("experts" in name or "gate" in name for name in outside)
