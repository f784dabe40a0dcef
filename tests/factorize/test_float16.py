"""Every form of a float16 model holds finite factors, however far apart their scales are."""

import pytest
import torch
from safetensors.torch import load_file

from slimrank import compress
from slimrank.forms import Form, KeptColumns

FORMS = {
    "low_rank": ["form={name: low_rank}"],
    "columns": ["form={name: columns, gain: 0}"],
    "pivoted": ["form={name: pivoted}"],
    "joint": ["form={name: pivoted, joint: true}", "allocate={name: nats}"],
    "updated": ["form={name: low_rank}", "refine=[{name: update}]"],
    "anchored": ["form={name: low_rank}", "refine=[{name: anchored}]"],
}
QUICK = {"keep": 0.6, "samples": 8, "window": 32}


@pytest.fixture(scope="module")
def apart(tiny_llama, module_tokenizer, make_text, tmp_path_factory):
    """A folder with a float16 model of tiny gradients and very unlike channels, and a text."""
    place = tmp_path_factory.mktemp("apart")
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.mul_(1e-5)
        for block in model.model.layers:
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight[3] = 300.0
    model.half().save_pretrained(place / "dense")
    module_tokenizer.save_pretrained(place / "dense")
    (place / "text.txt").write_text(make_text(3000))
    return place


@pytest.mark.parametrize("form", FORMS)
def test_float16_holds_the_factors(apart, tmp_path, form):
    options = {**QUICK, "calibration": str(apart / "text.txt"), "settings": FORMS[form]}
    result = compress(str(apart / "dense"), "fwsvd", **options)
    exact = {name: module.dense_weight() for name, module in result.model.named_modules() if isinstance(module, Form)}
    result.save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in stored.values() if tensor.is_floating_point())
    forms = {name: module for name, module in result.model.half().named_modules() if isinstance(module, Form)}
    assert any(isinstance(module, KeptColumns) for module in forms.values()) == (form == "columns")
    for name, module in forms.items():
        assert (module.dense_weight() - exact[name]).norm() <= 2e-3 * exact[name].norm()
