"""Every mixture of experts that transformers has as a causal language model, tiny and random."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slimrank.calibrate.follow import follow
from slimrank.errors import SlimrankError
from slimrank.forms.experts import layout_of, unfold
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder

SHORT = {"inkling_text", "inkling2_text"}  # their shared experts are three matrices in batched products


def built(kind, tiny):
    """The model, or None where transformers cannot build it so small."""
    torch.manual_seed(0)
    try:
        return AutoModelForCausalLM.from_config(tiny(CONFIG_MAPPING[kind])).float().eval()
    except Exception:  # of any kind, from the model's own code
        return None


def marked(module):
    """Whether transformers says by flags that this module is one of fused experts."""
    return hasattr(module, "is_transposed") and any(p.ndim == 3 for p in module.parameters(recurse=False))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_almost_all_of_every_mixture_is_linears_and_every_module_that_is_marked_is_known(script):
    tiny, found, short = script("tiny_configs").tiny, [], {}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model = built(kind, tiny) if kind in CONFIG_MAPPING else None
        if model is None or not any(layout_of(module) or marked(module) for module in model.modules()):
            continue
        unknown = [name for name, module in model.named_modules() if marked(module) and layout_of(module) is None]
        assert not unknown, f"{kind}: {unknown}"
        unfold(model)
        decoder = Decoder(model)
        try:
            follow(decoder, torch.randint(3, 96, (2, 32), generator=torch.Generator().manual_seed(0)))
        except SlimrankError:  # refused, with a reason
            continue
        linears = Compressible.of(decoder).units.values()
        inside, outside = sum(unit.parameters for unit in linears), decoder.outside_linears()
        routers = ("gate.weight", "router.weight", "router.layer.weight", "router.classifier.weight")
        rest = sum(count for name, count in outside.items() if not name.endswith(routers))
        found.append(kind)
        if inside < 0.95 * (inside + rest):
            short[kind] = inside / (inside + rest)
    assert len(found) >= 40
    assert short.keys() <= SHORT, short
