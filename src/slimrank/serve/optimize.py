"""Make a model faster at inference: fewer products, none that only reorders, and kernels for few tokens at a time.

In a decoder block q, k and v read one tensor, and so do gate and up. The matrices that multiply it, the weight of a
dense layer or the input factor of a compressed one, are stacked into one, so that a step starts fewer and larger
products. Which linears share an input is found by running a few tokens, for any architecture; no name is looked at.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from slimrank.model.modules import set_module
from slimrank.serve.few_tokens import use_few_token_kernels
from slimrank.serve.fold import fold_orders
from slimrank.serve.one_token import use_one_token_kernels
from slimrank.serve.packed import Packed, PackedPart
from slimrank.serve.sharing import readers_of_one_input


def optimize(model: PreTrainedModel) -> PreTrainedModel:
    """Fold orders away, pack the linears of `model` that share an input, and take the device's kernels, in place.

    Returns the model. The state dict keeps its keys and shapes, so the model saves and loads like before, though
    channels inside an MLP may be in another order; outputs differ by rounding only. The packed weights get no gradients
    and are no nn.Linear for PEFT: fine-tune first, then optimize.
    """
    fold_orders(model)
    for names in shared_inputs(model):
        linears = [model.get_submodule(name) for name in names]
        packed = Packed([linear for linear in linears if isinstance(linear, nn.Linear)])
        for index, name in enumerate(names):
            set_module(model, name, PackedPart(packed, index))
    if not use_few_token_kernels(model):
        use_one_token_kernels(model)
    return model


def shared_inputs(model: PreTrainedModel) -> list[list[str]]:
    """Groups of nn.Linear, by name in the order they run, that read the very same tensor in a forward pass."""
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    groups = readers_of_one_input(model, linears)
    return [names for names in groups if _alike([linears[name] for name in names])]


def _alike(linears: Sequence[nn.Linear]) -> bool:
    return len({(linear.weight.dtype, linear.weight.device) for linear in linears}) == 1
