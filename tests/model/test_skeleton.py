import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, ZambaConfig

from slimrank import compress, load
from slimrank.model.decoder import Decoder


@pytest.fixture
def shared(place):
    """A folder with a model whose attention blocks have the same weights."""
    config = ZambaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, attention_hidden_size=64, attention_head_dim=16, mamba_d_state=8,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
    )  # fmt: skip
    torch.manual_seed(0)
    (place / "dense" / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained("dense")


@pytest.mark.skipif(transformers.__version__ < "5", reason="Zamba's kinds of blocks have other names")
def test_blocks_that_share_weights_are_loaded_whole_and_the_shared_ones_stay_dense(shared):
    loaded = load("dense", room=2**30)
    assert loaded.weights is None
    stays = Decoder(loaded.model).stays
    assert {name.split(".")[2] for name in stays} == {"1", "3"}
    ids = torch.arange(64).view(2, 32)
    result = compress("dense", "svd-llm", keep=0.6, calibration="text.txt", samples=8, window=32)
    compress("dense", "svd-llm", keep=0.6, calibration="text.txt", samples=8, window=32, out="out")
    assert stays.keys().isdisjoint(result.plan.linears) and result.plan.linears
    with torch.no_grad():
        expected = result.model(input_ids=ids, use_cache=False).logits
        found = AutoModelForCausalLM.from_pretrained("out")(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.std().item())
