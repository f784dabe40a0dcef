"""Few-bit layers in an ONNX graph: a node MatMulNBits each, which ONNX Runtime and OpenVINO run without floats."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from slimrank.forms.quantized import QuantizedLinear
from slimrank.numerics.packing import pack

BLOCKS = (128, 64, 32, 16)
"""Inputs that share a scale in a node."""


def block_of(layer: QuantizedLinear) -> int | None:
    """The node's block for a layer's groups, a power of two from 16; None where it has none that fits."""
    width = layer.group or -(-layer.in_features // BLOCKS[-1]) * BLOCKS[-1]
    return next((block for block in BLOCKS if width % block == 0 and block <= max(layer.in_features, 16)), None)


@contextmanager
def few_bit_nodes(model: nn.Module) -> Iterator[None]:
    """Inside, the model is traced with a node for every few-bit layer; a warning names those that have none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    blocks = {name: block_of(layer) for name, layer in layers.items()}
    without = [name for name, block in blocks.items() if block is None]
    if without:
        warnings.warn(
            f"{without[0]} and {len(without) - 1} more have groups that are no multiple of 16, so that the graph makes "
            "their numbers floats at every call.",
            stacklevel=3,
        )
    for name, layer in layers.items():
        block = blocks[name]
        if block is not None and layer.weight.numel():
            layer.forward = partial(product, layer, *operands(layer, block), block)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


@torch.no_grad()
def operands(layer: QuantizedLinear, block: int) -> tuple[Tensor, Tensor]:
    """The node's B (out, blocks, bytes of a block) uint8, numbers plus 2^(bits-1), and scales (out, blocks) float32."""
    bits, count = width_of(layer), -(-layer.in_features // block)
    numbers = nn.functional.pad(layer.numbers(), (0, count * block - layer.in_features))
    packed = (numbers.int() + 128).to(torch.uint8) if bits == 8 else pack(numbers, 4)[:, : count * block // 2]
    index = torch.arange(count) * block // (layer.group or layer.in_features)
    scale = layer.scale.float().index_select(1, index) if layer.scale.shape[1] > 1 else layer.scale.float()
    return packed.unflatten(1, (count, -1)).contiguous(), scale.expand(-1, count).contiguous()


def width_of(layer: QuantizedLinear) -> int:
    """The node's bits: 8, or 4 for 4, 3 and 2."""
    return 8 if layer.bits == 8 else 4


def product(layer: QuantizedLinear, packed: Tensor, scale: Tensor, block: int, x: Tensor) -> Tensor:
    """x (..., in) times the layer's weight, plus its bias, as a node."""
    y = torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        (x, packed, scale),
        {"K": layer.in_features, "N": layer.out_features, "bits": width_of(layer), "block_size": block},
        dtype=x.dtype,
        shape=(*x.shape[:-1], layer.out_features),
        version=1,
    )
    return y if layer.bias is None else y + layer.bias
