import torch
from architectures import gemma3_with_vision, llama
from lossless import factors

from slimrank.evaluate.models import linear_parameters
from slimrank.forms import FORMS
from slimrank.forms.linear import is_linear, weight_of
from slimrank.model.load import Loaded

RANK = 3


def counted(model):
    return linear_parameters(Loaded("tiny", model, None, torch.float32, None))


def cut(blocks):
    """Replace the linears of the blocks by factors of rank 3; returns how many numbers these have."""
    dense = [(name, module) for name, module in blocks.named_modules() if is_linear(module)]
    for name, module in dense:
        left, right = factors(weight_of(module))
        blocks.set_submodule(name, FORMS["low_rank"].from_low_rank(left[:, :RANK], right[:RANK], module.bias))
    return sum(RANK * sum(weight_of(module).shape) for _, module in dense)


def test_the_linears_of_the_blocks_are_counted_before_and_after():
    model = llama()
    assert counted(model) == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert counted(model) > cut(model.model.layers) == counted(model)


def test_a_vision_tower_is_not_taken_for_the_compressed_blocks():
    model = gemma3_with_vision()
    assert counted(model) == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert cut(model.model.language_model.layers) == counted(model)
