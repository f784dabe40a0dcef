"""Compressed layers on a GPU for few tokens at a time: all that read one input in two launches.

A product of few tokens is bound by reading the matrix, and a compressed layer's products are thin: one by one, they
take longer to start than to compute. So a unit, which is q, k and v, or gate and up, or one layer, goes through the
operator of slimrank.serve.kernels. More tokens, training and other devices take the layers themselves.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.forms import Form
from slimrank.forms.linear import plain_weight
from slimrank.forms.outputs import Outputs
from slimrank.serve.kernels.blocks import MOST
from slimrank.serve.kernels.operator import DTYPES, few_tokens
from slimrank.serve.packed import Packed, PackedPart

DEVICE = "cuda"
"""The type of the devices that run the kernels."""


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels can't serve this dtype on this device, as a sentence; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton isn't installed, so compressed layers run without the kernels for few tokens: pip install triton."
        )
    if dtype not in DTYPES:
        return f"The kernels for few tokens take bfloat16, float16 or float32, not {str(dtype).removeprefix('torch.')}."
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
        if major < 7:
            return f"{name} is older than Triton supports, so compressed layers run without the kernels for few tokens."
        if dtype == torch.bfloat16 and major < 8:
            return f"{name} has no bfloat16, so compressed layers run without the kernels: load in float16."
    return None


def use_few_token_kernels(model: PreTrainedModel) -> bool:
    """Let the compressed layers of `model` take the kernels where they apply, in place; whether there are any.

    Where this machine has none, a warning says so in a sentence.
    """
    found, device = units(model), model.device
    if not found or device.type != DEVICE:
        return False
    reason = unavailable(device, model.dtype)
    if reason:
        warnings.warn(reason, stacklevel=3)
        return False
    for layers in found:
        serve(layers, device)
    return True


def serve(layers: Sequence[Any], device: torch.device) -> None:
    """Let the layers of a unit, which are on this device, take the kernels where they apply, in place."""
    unit = Unit(layers, frozenset(dtype for dtype in DTYPES if unavailable(device, dtype) is None))
    for index, layer in enumerate(layers):
        layer.forward = partial(unit, index)
        for module in layer.modules():
            if isinstance(module, nn.Linear | Packed):
                widen(module)


def units(model: nn.Module) -> list[list[Any]]:
    """The layers that read one input, as far as their input factors lie in one matrix, in the order of its rows.

    Each is a form that says what its outputs are, or a dense layer in one pack with such forms.
    """
    found: dict[int, list[tuple[int, Any]]] = {}
    inside = {id(part) for form in model.modules() if isinstance(form, Form) for part in form.modules()} - {
        id(form) for form in model.modules() if isinstance(form, Form)
    }
    for module in model.modules():
        outputs = module.outputs() if isinstance(module, Form) and "forward" not in vars(module) else None
        factor = outputs.factor if outputs else module
        if isinstance(factor, PackedPart) and (outputs or id(module) not in inside):
            found.setdefault(id(factor.packed), []).append((factor.index, module))
        elif outputs and plain_weight(factor) is not None:
            found.setdefault(id(factor), []).append((0, module))
    ordered = [[layer for _, layer in sorted(layers, key=lambda one: one[0])] for layers in found.values()]
    return [layers for layers in ordered if any(isinstance(layer, Form) for layer in layers)]


def widen(linear: nn.Linear | Packed) -> None:
    """Let the rows of the weight start 16 numbers apart or a multiple of it, so that they are read in wide pieces."""
    rows, columns = linear.weight.shape
    if columns % 16 and linear.weight.stride(0) % 16:
        wide = linear.weight.new_zeros(rows, -(-columns // 16) * 16)
        wide[:, :columns] = linear.weight.detach()
        linear.weight = nn.Parameter(wide[:, :columns], requires_grad=linear.weight.requires_grad)


class Unit:
    """Layers that read one input: the first one's call computes all outputs, the last one's releases them.

    A call with another input than the first one's, or with what the kernels don't serve, goes to the layer itself.
    """

    def __init__(self, layers: Sequence[Any], dtypes: frozenset[torch.dtype]) -> None:
        self.layers, self.dtypes = layers, dtypes
        self.held: tuple[Tensor, Sequence[Tensor]] | None = None

    def __call__(self, index: int, x: Tensor) -> Tensor:
        """Map x (..., in) to the outputs (..., out) of layer `index`."""
        held = self.held  # read once: another thread may call in between
        if index == 0:
            outputs = self.outputs(x) if serves(x) and x.dtype in self.dtypes else None
            held = None if outputs is None else (x, outputs)
            self.held = held if len(self.layers) > 1 else None
        if held is None or held[0] is not x:
            layer = self.layers[index]
            y: Tensor = type(layer).forward(layer, x)
            return y
        if index == len(self.layers) - 1:
            self.held = None
        return held[1][index]

    def outputs(self, x: Tensor) -> Sequence[Tensor] | None:
        """Every layer's outputs, by the operator; None where a layer no longer is what it was."""
        parts = [outputs_of(layer) for layer in self.layers]
        factors = [factor_of(part) for part in parts]
        if any(factor is None or factor[0].device != x.device or factor[0].dtype != x.dtype for factor in factors):
            return None
        return computed(x, [(part, *factor) for part, factor in zip(parts, factors, strict=True) if part and factor])


def outputs_of(layer: Any) -> Outputs | None:
    """What the outputs of a form are, or of a dense layer in a pack."""
    if isinstance(layer, PackedPart):
        return Outputs(layer, None, layer.out_features, bias=layer.bias)
    found: Outputs | None = layer.outputs()
    return found


def factor_of(part: Outputs | None) -> tuple[Tensor, int, int] | None:
    """The matrix in which the input factor lies, its first row there, and how many it has."""
    if part is None:
        return None
    if isinstance(part.factor, PackedPart):
        packed: Packed = part.factor.packed
        return packed.weight, sum(packed.sizes[: part.factor.index]), part.factor.out_features
    weight = plain_weight(part.factor)
    return None if weight is None else (weight, 0, len(weight))


def serves(x: Tensor) -> bool:
    """Whether the kernels are for this input: few tokens on a GPU, without gradients."""
    return (
        x.device.type == DEVICE
        and x.numel() <= MOST * x.shape[-1]
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(DEVICE)
        and not torch.compiler.is_exporting()
    )


def computed(x: Tensor, parts: Sequence[tuple[Outputs, Tensor, int, int]]) -> Sequence[Tensor]:
    """The outputs of layers whose input factors lie in one matrix, by the operator: each (..., out_i) of x (..., in).

    parts: of each layer its outputs, the matrix, which is one, its input factor's first row there, and its rank.
    """
    outputs = [part for part, *_ in parts]
    places = [number for part, _, first, rank in parts for number in (part.copies, first, rank)]
    y = few_tokens(
        x, parts[0][1], outputs[0].order, outputs[0].kept, [part.matrix for part in outputs],
        [part.table for part in outputs], [part.bias for part in outputs], places,
    )  # fmt: skip
    return y.split([part.size for part in outputs], dim=-1)
