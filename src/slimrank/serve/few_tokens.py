"""Compressed layers on a GPU for few tokens at a time: all that read one input in two launches.

A product of few tokens is bound by reading the matrix, and a compressed layer's products are thin: one by one, they
take longer to start than to compute. So a unit, which is q, k and v, or gate and up, or one layer, goes through the
operator of slimrank.serve.kernels, which reads whole numbers of few bits as they are stored. More tokens, training and
other devices take the layers themselves.
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
from slimrank.forms.embedding import TiedHead
from slimrank.forms.outputs import Outputs
from slimrank.forms.quantized import QuantizedLinear
from slimrank.forms.stored import StoredMatrix, stored
from slimrank.serve.kernels.blocks import MOST
from slimrank.serve.kernels.operator import few_tokens
from slimrank.serve.kernels.tensors import DTYPES
from slimrank.serve.packed import Packed, PackedPart
from slimrank.serve.sharing import readers_of_one_input

DEVICE = "cuda"
"""The type of the devices that run the kernels."""

Layers = Sequence[Sequence[Any]]
"""Several layers together, several times."""


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
    device = model.device
    found = units(model, few_bits_together(model)) if device.type == DEVICE else []
    if not found:
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
            if isinstance(module, nn.Linear | Packed | QuantizedLinear):
                widen(module)


def few_bits_together(model: PreTrainedModel) -> list[list[Any]]:
    """Layers of few bits that read one input, in the order they run; of floats a pack says so."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Form) and module.bits}
    return [[layers[name] for name in names] for names in readers_of_one_input(model, layers)] if layers else []


def units(model: nn.Module, together: Layers = ()) -> list[list[Any]]:
    """The layers that read one input, as far as one operator computes them, in the order they run.

    Each is a form that says what its outputs are, or the head that is tied to an embedding of few bits, or a dense
    layer in one pack with such forms. Of floats, those are a unit whose input factors lie in one matrix, in the order
    of its rows; of few bits, those of one width and group that are `together`.
    """
    places = {id(layer): (at, index) for at, layers in enumerate(together) for index, layer in enumerate(layers)}
    found: dict[Any, list[tuple[int, Any]]] = {}
    inside = {id(part) for form in model.modules() if isinstance(form, Form) for part in form.modules()} - {
        id(form) for form in model.modules() if isinstance(form, Form)
    }
    for module in model.modules():
        said = isinstance(module, Form | TiedHead) and "forward" not in vars(module)
        outputs = module.outputs() if said else None  # type: ignore[operator, union-attr]
        factor = outputs.factor if outputs else module
        if isinstance(factor, PackedPart) and (outputs or id(module) not in inside):
            found.setdefault(id(factor.packed), []).append((factor.index, module))
        elif outputs and (matrix := read_first(outputs)) is not None:
            kind: Any = id(module if factor is None else factor)
            index = 0
            if matrix.bits is not None and outputs.order is None and id(module) in places:
                at, index = places[id(module)]
                kind = (at, matrix.bits, matrix.group, factor is None)
            found.setdefault(kind, []).append((index, module))
    ordered = [[layer for _, layer in sorted(layers, key=lambda one: one[0])] for layers in found.values()]
    return [layers for layers in ordered if any(isinstance(layer, Form | TiedHead) for layer in layers)]


def read_first(outputs: Outputs) -> StoredMatrix | None:
    """The matrix that multiplies a layer's input: its input factor, or, where all inputs are kept, the other one."""
    return outputs.matrix if outputs.factor is None else stored(outputs.factor)


def widen(linear: nn.Linear | Packed | QuantizedLinear) -> None:
    """Let the rows of the weight start 16 numbers apart or a multiple of it, so that they are read in wide pieces.

    Packed rows stay as they are.
    """
    weight, few = linear.weight, isinstance(linear, QuantizedLinear)
    rows, columns = weight.shape
    if columns % 16 and weight.stride(0) % 16 and weight.dtype != torch.uint8:
        wide = weight.new_zeros(rows, -(-columns // 16) * 16)
        wide[:, :columns] = weight.detach()
        own = wide[:, :columns]
        linear.weight = own if few else nn.Parameter(own, requires_grad=weight.requires_grad)


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
        found = [outputs_of(layer) for layer in self.layers]
        parts = [part for part in found if part is not None]
        return computed(x, parts) if len(parts) == len(found) else None


def outputs_of(layer: Any) -> Outputs | None:
    """What the outputs of a form are, or of a dense layer in a pack."""
    if isinstance(layer, PackedPart):
        return Outputs(layer, None, layer.out_features, bias=layer.bias)
    found: Outputs | None = layer.outputs()
    return found


def serves(x: Tensor) -> bool:
    """Whether the kernels are for this input: few tokens on a GPU, without gradients."""
    return (
        x.device.type == DEVICE
        and x.numel() <= MOST * x.shape[-1]
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(DEVICE)
        and not torch.compiler.is_exporting()
    )


def computed(x: Tensor, parts: Sequence[Outputs]) -> Sequence[Tensor] | None:
    """The outputs of layers that read one input, by the operator: each (..., out_i) of x (..., in).

    None where a factor is no plain matrix, or they are not all alike in bits, groups, device and dtype, which is x's.
    """
    factors, places = placed(parts)
    given = [*factors, *(part.matrix for part in parts if part.matrix is not None)]
    if not all(matrix is not None and _alike(matrix, given[0], x) for matrix in given):
        return None
    held = [*factors, *(part.matrix for part in parts)]
    bits, group = (given[0].bits, given[0].group) if given[0] is not None else (None, None)
    y = few_tokens(
        x, [one.numbers for one in factors if one is not None], parts[0].order, parts[0].kept,
        [None if part.matrix is None else part.matrix.numbers for part in parts], [part.table for part in parts],
        [part.bias for part in parts], places,
        [None if one is None else one.scale for one in held] if bits else [], bits or 0, group or 0,
    )  # fmt: skip
    return y.split([part.size for part in parts], dim=-1)


def placed(parts: Sequence[Outputs]) -> tuple[list[StoredMatrix | None], list[int]]:
    """The input factors of layers, each once, None for what is no plain matrix, and of every layer its Place there."""
    owners: list[Any] = []
    factors: list[StoredMatrix | None] = []
    places: list[int] = []
    starts = [0]
    for part in parts:
        if part.factor is None:
            places += [part.copies, 0, 0]
            continue
        pack = part.factor.packed if isinstance(part.factor, PackedPart) else None
        owner = part.factor if pack is None else pack
        at = index_of(owner, owners)
        if at == len(owners):
            matrix = stored(owner) if pack is None else StoredMatrix(pack.weight)
            owners.append(owner)
            factors.append(matrix)
            starts.append(starts[-1] + (0 if matrix is None else len(matrix.numbers)))
        inside = 0 if pack is None else sum(pack.sizes[: part.factor.index])
        rank = starts[at + 1] - starts[at] if pack is None else part.factor.out_features
        places += [part.copies, starts[at] + inside, rank]
    return factors, places


def index_of(owner: Any, owners: Sequence[Any]) -> int:
    """Its place among the owners, the one behind them where it is none of them."""
    for at, one in enumerate(owners):  # a plain loop, which torch.compile follows
        if one is owner:
            return at
    return len(owners)


def _alike(matrix: StoredMatrix, other: StoredMatrix | None, x: Tensor) -> bool:
    same = other is not None and (matrix.bits, matrix.group) == (other.bits, other.group)
    return same and matrix.numbers.device == x.device and matrix.dtype == x.dtype
