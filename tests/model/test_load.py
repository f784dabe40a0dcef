import io
import json
import sys

import pytest
import torch

from slimrank import load
from slimrank.errors import SlimrankError, UsageError


@pytest.fixture
def directory(tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize("kind", ["own", "clip"])  # clip: a config that transformers knows, without a causal LM
@pytest.mark.parametrize("room", [None, 2**30])
def test_code_of_a_checkpoint_is_not_run_whatever_stands_on_stdin(directory, room, kind, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (directory / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((directory / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (directory / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": own}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    with pytest.raises(SlimrankError, match="cannot be loaded"):
        load(str(directory), room=room)
    assert not ran.exists()


@pytest.mark.parametrize("room", [None, 2**30])
def test_a_pickle_is_not_read(directory, tiny_llama, room):
    (directory / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(SlimrankError, match=r"pytorch_model.bin is a pickle .* save it again, as safetensors"):
        load(str(directory), room=room)


def test_a_device_without_numbers_is_refused(directory):
    with pytest.raises(UsageError, match="--device meta cannot be used"):
        load(str(directory), device="meta")
