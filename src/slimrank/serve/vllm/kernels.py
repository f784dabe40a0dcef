"""Matrices of few bits in vLLM: by its own kernels for few bits and activations of 16, else by slimrank's operator."""

import warnings
from functools import cache

import torch
from torch import Tensor
from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
from vllm.model_executor.parameter import ChannelQuantScaleParameter, GroupQuantScaleParameter, PackedvLLMParameter
from vllm.scalar_type import scalar_types

from slimrank.forms.quantized import QuantizedLinear
from slimrank.numerics.packing import MULTIPLE
from slimrank.serve.few_bits import FewBits, StoredProduct, why_floats

TYPES = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}
"""By the bits of our numbers, what vLLM calls them: plus 8 or 128, without zero points."""


class Wna16(FewBits):
    """FewBits by the kernel that vLLM chooses for this device, in the layout of compressed-tensors.

    Raises a ValueError that says why where there is none.
    """

    def __init__(self, few: QuantizedLinear) -> None:
        group, dtype = few.group if few.group and few.group < few.in_features else MULTIPLE, few.scale.dtype
        if few.bits not in TYPES or dtype == torch.float32 or not few.weight.numel():
            raise ValueError("vLLM's kernels take 4 or 8 bits, and activations of bfloat16 or float16")
        if group % MULTIPLE and MULTIPLE % group:
            raise ValueError(f"vLLM's kernels take groups in multiples of {MULTIPLE} inputs")
        super().__init__(few, MULTIPLE, max(MULTIPLE, group))
        few = self.filled
        del self.filled
        shape = few.in_features, few.out_features
        config = MPLinearLayerConfig(
            full_weight_shape=shape, partition_weight_shape=shape, weight_type=TYPES[few.bits], act_type=dtype,
            group_size=few.group or -1, zero_points=False,
        )  # fmt: skip
        kernel = choose_mp_linear_kernel(config)
        words = few.weight.view(torch.uint8) ^ 128 if few.bits == 8 else few.weight
        self.weight_packed = PackedvLLMParameter(
            data=words.view(torch.int32), input_dim=1, output_dim=0, packed_dim=1, packed_factor=32 // few.bits,
            weight_loader=_refuse,
        )  # fmt: skip
        self.weight_scale = (
            ChannelQuantScaleParameter(data=few.scale, output_dim=0, weight_loader=_refuse)
            if few.group is None
            else GroupQuantScaleParameter(data=few.scale, output_dim=0, input_dim=1, weight_loader=_refuse)
        )
        self.bias = None  # kernels look at their layer's
        self.kernel = kernel(config, "weight_packed", "weight_scale", "weight_zero_point")
        self.kernel.process_weights_after_loading(self)

    def product(self, x: Tensor) -> Tensor:
        """By the kernel."""
        y: Tensor = self.kernel.apply_weights(self, x)
        return y


def few_bits(few: QuantizedLinear) -> FewBits:
    """The product with a matrix of few bits; a warning says where its numbers are made floats at every call."""
    try:
        return Wna16(few)
    except ValueError as error:
        reason = " ".join(str(error).split())
    product = StoredProduct(few)
    why = why_floats(product.filled, product.kernels)
    if why is not None:
        shared = "row" if few.group is None else f"{few.group} inputs"
        tell(
            f"vLLM makes matrices of {few.bits} bits with a scale every {shared} floats at every call: {reason}, and "
            f"{why}."
        )
    return product


@cache
def tell(text: str) -> None:
    """Warn once of what holds of many layers."""
    warnings.warn(text, stacklevel=3)


def _refuse(*_: object) -> None:
    raise NotImplementedError
