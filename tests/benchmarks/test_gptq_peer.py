"""A peer's GPTQ beside the rows of bytes, with a stand-in for the peer."""

import json
import sys

import pytest
from safetensors.torch import load_file

STAND_IN = f"""#!{sys.executable}
import sys
from safetensors.torch import load_file, save_file
source, windows, bits, group, observer, target = sys.argv[3:]
assert observer == ("memoryless_mse" if bits == "3" else "memoryless_minmax")
if bits == "2":
    print("ValueError: no such width", "and where to read of it", sep=chr(10), file=sys.stderr)
    sys.exit(1)
assert load_file(windows)["ids"].shape == (4, 32)
weights = load_file(source + "/model.safetensors")
names = [name for name in weights if name.endswith("_proj.weight")]
save_file({{name.removesuffix(".weight"): weights[name] * (2 if bits == "3" else 1) for name in names}}, target)
print("llmcompressor 0.0", "it says more", sep=chr(10))
"""


@pytest.fixture
def asked(place) -> list[str]:
    peer = place / "peer"
    peer.write_text(STAND_IN)
    peer.chmod(0o755)
    return ["dense", "--peer", str(peer), "--calibration", "text.txt", "--text", "a/test.txt", "--samples", "4",
            "--window", "32", "--max-windows", "4", "--out", "peer.json", "--grids"]  # fmt: skip


def test_the_peers_weights_are_judged_and_what_they_would_take_is_counted(place, run, asked):
    run("gptq_peer", *asked, "4:16,3:16:memoryless_mse")
    whole, doubled = json.loads((place / "peer.json").read_text())["rows"]
    weights = load_file(place / "dense" / "model.safetensors")
    linears = [weight for name, weight in weights.items() if name.endswith("_proj.weight")]
    ends = [weight for name, weight in weights.items() if "embed_tokens" in name or "lm_head" in name]
    vectors = sum(weight.numel() for weight in weights.values() if weight.dim() == 1)
    numbers = sum(weight.numel() for weight in linears)
    scales = sum(weight.shape[0] * -(-weight.shape[1] // 16) for weight in linears)
    rest = sum(weight.numel() + 2 * weight.shape[0] for weight in ends) + 2 * vectors
    assert whole["bytes"] == numbers * 4 // 8 + 2 * scales + rest
    assert doubled["bytes"] == numbers * 3 // 8 + 2 * scales + rest
    assert whole["made_by"] == "llmcompressor 0.0"
    # an embedding in 8 bits is all that the first one lost
    assert 0 < whole["texts"]["test.txt"]["kl"] < 1e-3 < doubled["texts"]["test.txt"]["kl"]


def test_what_the_peer_says_is_passed_on(run, asked, capsys):
    with pytest.raises(SystemExit):
        run("gptq_peer", *asked, "2:16")
    assert "llm-compressor did not make 2 bits: ValueError: no such width." in capsys.readouterr().err
