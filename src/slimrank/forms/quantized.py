"""Factors stored in 8, 4, 3 or 2 bits with scales."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms.linear import linear_with
from slimrank.numerics.packing import pack, row_bytes, unpack
from slimrank.numerics.products import (
    FEW,
    FourBits,
    aligned,
    dequantize,
    four_bit_product,
    four_bits,
    kernel_group,
    stored_product,
    takes_eight_bits,
)

BITS = (8, 4, 3, 2)
GROUP = 32
"""Inputs that share a scale in 4 bits where an entry doesn't say."""

STORED = ("weight", "scale")
"""The names of the tensors that a factor stores, floats having the first alone."""


def group_of(bits: int | None, group: int | None) -> int | None:
    """The inputs that share a scale, None for a whole row, of an entry's `bits` and `group`."""
    return GROUP if bits == 4 and group is None else group


def groups_of(columns: int, group: int | None) -> int:
    """How many scales a row has; the last may be of fewer inputs."""
    return -(-columns // group) if group else 1


def stored_bytes(rows: int, columns: int, bits: int, group: int | None, scale_bytes: int = 2) -> int:
    """The bytes that QuantizedLinear writes of a matrix (rows, columns) without its bias.

    group: inputs that share a scale, None for a whole row, also in 4 bits; scale_bytes: of one scale, 2 in 16 bits.
    """
    return rows * (row_bytes(columns, bits) + groups_of(columns, group) * scale_bytes)


class QuantizedLinear(nn.Module):
    """y = (q s) x + b: q whole numbers from -2^(bits-1) to 2^(bits-1) - 1, s the scale of their row and group.

    `weight` is (out, in) int8 in 8 bits, else (out, row_bytes) uint8 as numerics.packing.pack says; `scale` is
    (out, ceil(in / group)), or (out, 1) where group is None and a whole row shares it.
    """

    weight: Tensor
    scale: Tensor
    packs: bool = True
    """Whether the weight may be kept a second time, as torch's kernel for 4 bits reads it."""

    _packed: tuple[Any, FourBits | None] | None = None

    def __init__(self, linear: nn.Linear, bits: int, group: int | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits, self.group = (
            linear.in_features,
            linear.out_features,
            bits,
            group,
        )
        device, dtype = linear.weight.device, linear.weight.dtype
        kind = torch.int8 if bits == 8 else torch.uint8
        shape = self.out_features, row_bytes(self.in_features, bits)
        scales = self.out_features, groups_of(self.in_features, group)
        self.register_buffer("weight", torch.empty(shape, dtype=kind, device=device))
        self.register_buffer("scale", torch.empty(scales, dtype=dtype, device=device))
        self.bias = linear.bias

    @torch.no_grad()
    def store(self, numbers: Tensor, scale: Tensor) -> None:
        """Take q (out, in) int8 and s (out, groups), which is cast to the layer's dtype.

        Raises:
            SlimrankError: for other shapes, numbers that the bits can't hold, or scales that are not finite.
        """
        held, limit = (self.out_features, self.in_features), 2 ** (self.bits - 1)
        if numbers.shape != held or scale.shape != self.scale.shape:
            raise SlimrankError(
                f"A layer of {held} takes whole numbers of that shape and scales {tuple(self.scale.shape)}, not "
                f"{tuple(numbers.shape)} and {tuple(scale.shape)}."
            )
        if numbers.numel() and not -limit <= int(numbers.min()) <= int(numbers.max()) < limit:
            raise SlimrankError(f"Whole numbers of {self.bits} bits lie from {-limit} to {limit - 1}: round to these.")
        self.scale.copy_(scale)
        self.weight.copy_(pack(numbers, self.bits))
        self.require_finite("to store")

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor, columns: int, bits: int, group: int | None) -> Self:
        """The layer of so many inputs, without bias, with these very tensors, stored as the class says."""
        made = cls(linear_with(torch.empty(len(weight), columns, device="meta")), bits, group)
        made.weight, made.scale = weight, scale
        return made

    def picked(self, rows: Tensor | None, columns: Tensor | None) -> "QuantizedLinear":
        """As the function `picked`."""
        weight, scale, group, count = self.weight, self.scale, self.group, self.in_features
        if rows is not None:
            weight, scale = weight[rows], scale[rows]
        if columns is not None and len(columns) < count:
            count = len(columns)
            weight = pack(unpack(weight, self.bits, self.in_features)[:, columns], self.bits)
            if group is not None:
                shared = columns // group
                while not torch.equal(shared, shared[::group].repeat_interleave(group)[:count]):
                    group //= 2
                scale = scale[:, shared[::group]]
        return QuantizedLinear.of(weight, scale, count, self.bits, group)

    def numbers(self) -> Tensor:
        """q (out, in) int8."""
        return unpack(self.weight, self.bits, self.in_features)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight (n, in), in the scale's dtype, by their numbers (n,)."""
        numbers = unpack(self.weight.index_select(0, index), self.bits, self.in_features)
        return dequantize(numbers, self.scale.index_select(0, index), self.group)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        if self._is_served(x):
            y = self._on_cpu(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
            return y if self.bias is None else y + self.bias
        if self._scaled_later(x.dtype):
            y = nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale[:, 0].to(x.dtype)
            return y if self.bias is None else y + self.bias
        return nn.functional.linear(x, self.matrix().to(x.dtype), self.bias)

    def _scaled_later(self, dtype: torch.dtype) -> bool:
        """Whether outputs are multiplied by their scale instead of the weights; float16 could overflow before."""
        return self.bits == 8 and self.group is None and dtype != torch.float16

    def _is_served(self, x: Tensor) -> bool:
        """Whether this call wants outputs alone, on a CPU."""
        return (
            x.device.type == "cpu"
            and x.dtype == self.scale.dtype
            and x.numel() > 0
            and not (torch.is_grad_enabled() and (x.requires_grad or self._trains()))
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.compiler.is_exporting()
        )

    def _trains(self) -> bool:
        return self.scale.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def _on_cpu(self, x: Tensor) -> Tensor:
        """x (m, in) times the weight, without the bias: (m, out)."""
        as_stored = self.bits == 8 and self.group is None and takes_eight_bits(self.out_features, self.in_features)
        if as_stored and self.packs:
            self.weight = aligned(self.weight)
        packed = self.packed() if len(x) <= FEW and not as_stored else None
        if packed is not None:
            return four_bit_product(x, packed)
        return stored_product(x, self.weight, self.scale, self.bits, self.group)

    def packed(self) -> FourBits | None:
        """The weight as torch's kernel for 4 bits reads it, made at the first call; None where it takes none such.

        It stays in memory beside what is stored, and is made anew once that has changed.
        """
        if not self.packs:
            return None
        tensors = (self.weight, self.scale)
        state = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if self._packed is None or self._packed[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = state, four_bits(self.numbers(), self.scale, self.bits, self.group)
        return self._packed[1]

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in) in `dtype`, by default the scale's."""
        scale = self.scale if dtype is None else self.scale.to(dtype)
        return dequantize(self.numbers(), scale, self.group)

    def why_floats(self) -> str | None:
        """Why every call makes the numbers floats, as the end of a sentence; None where a kernel takes them."""
        kind = self.weight.device.type
        if kind not in ("cpu", "meta"):
            instead = "; slimrank.serve.optimize.optimize takes others, for few tokens" if kind == "cuda" else ""
            return f"torch's kernels for few bits are used on a CPU only, and this is {kind}{instead}"
        alone = self.bits == 8 and self.group is None
        if alone or kernel_group(self.in_features, self.group) is not None:
            return None
        return f"torch's kernel for 4 bits takes groups in multiples of 32 inputs, not {self.group}"

    def require_finite(self, name: str) -> None:
        """Raise a SlimrankError that names the layer where a scale is not finite."""
        if not bool(self.scale.isfinite().all()):
            raise SlimrankError(f"The scales of the layer {name} hold NaN or Inf: get intact weights.")

    def extra_repr(self) -> str:
        """The shape, as nn.Linear prints it."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bits={self.bits}, group={self.group}"


def picked(linear: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> Any:
    """Some rows (o,) and columns (i,) of a factor, all by default, without its bias: an nn.Linear or a QuantizedLinear.

    Columns ascend. Where some that shared a scale no longer lie in one group, the groups become smaller.
    """
    if isinstance(linear, QuantizedLinear):
        return linear.picked(rows, columns)
    weight = linear.weight.detach()
    weight = weight if rows is None else weight[rows]
    weight = weight if columns is None else weight[:, columns]
    return linear_with(weight.contiguous())


def floats_of(linear: Any) -> Tensor:
    """The weight (out, in) of a factor, quantized or not, in the dtype of its floats."""
    matrix: Tensor = linear.matrix() if isinstance(linear, QuantizedLinear) else linear.weight
    return matrix


def matrix_of(linear: Any) -> Tensor:
    """The weight (out, in) of a factor in float64, quantized or not."""
    return linear.matrix(torch.float64) if isinstance(linear, QuantizedLinear) else linear.weight.double()
