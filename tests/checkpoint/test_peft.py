"""Fine-tuning with LoRA wins back what compression lost."""

import pytest
import torch
from joined import join
from lossless import factors
from transformers import AutoModelForCausalLM

from slimrank.calibrate import read_text
from slimrank.checkpoint import write_checkpoint
from slimrank.evaluate import perplexity
from slimrank.forms import LowRank, Pivoted, compressed_layers
from slimrank.forms.linear import is_linear, weight_of
from slimrank.model.load import load

peft = pytest.importorskip("peft")
WINDOW = 64


def test_lora_lowers_the_perplexity_of_a_compressed_demo_and_merges(tmp_path):
    loaded = load("demo")
    linears = [(name, one) for name, one in loaded.model.named_modules() if is_linear(one) and name != "lm_head"]
    join(loaded.model, rank=90, inside="model.layers.2.")
    linears = [(name, dense) for name, dense in linears if loaded.model.get_submodule(name) is dense]
    for number, (name, dense) in enumerate(linears):
        left, right = factors(weight_of(dense))
        rank = len(right) * 4 // 10
        form = (LowRank, Pivoted)[number % 2]
        loaded.model.set_submodule(name, form.from_low_rank(left[:, :rank].contiguous(), right[:rank].contiguous()))
    layers = compressed_layers(loaded.model)
    write_checkpoint(loaded.model, tmp_path / "small", layers=layers, dtype=torch.float32, source=loaded.directory)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    held_out = read_text("demo", part="evaluation")

    def measure(one):
        return perplexity(one.eval(), loaded.tokenizer, held_out, window=WINDOW, max_windows=16).perplexity

    before = measure(model)
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules="all-linear", r=8, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config).train()
    ids = loaded.tokenizer(read_text("demo").text[:40000], return_tensors="pt").input_ids[0]
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    for batch in windows[:160].split(8):
        adapted(batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    after = measure(adapted)
    assert after < 0.98 * before
    assert measure(adapted.merge_and_unload()) == pytest.approx(after, rel=1e-4)
