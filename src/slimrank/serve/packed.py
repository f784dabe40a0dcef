"""Several linears that read one input, as one product."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.serve.one_token import product


class Packed(nn.Module):
    """y_i = W_i x + b_i for several linears in one product: W (sum of out_i, in), b the same where any has one.

    The parts are called in the order of `linears`: the first call computes all outputs, the last one releases them.
    """

    only_serves = True
    """Whether the model that holds this can be served and not compressed (see model.load)."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        self.biased = [linear.bias is not None for linear in linears]
        self.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
        biases = [_bias_or_zeros(linear) for linear in linears]
        self.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if any(self.biased) else None
        self.held: tuple[Tensor, Sequence[Tensor]] | None = None

    def forward(self, index: int, x: Tensor) -> Tensor:
        """Part `index` of the product with x (..., in)."""
        held = self.held  # read once: another thread may call in between
        if index == 0:
            held = self.held = x, product(x, self.weight, self.bias).split(self.sizes, dim=-1)
        if held is None or held[0] is not x:
            bias = None if self.bias is None else self.slice(self.bias, index)
            return product(x, self.slice(self.weight, index), bias)
        if index == len(self.sizes) - 1:
            self.held = None
        return held[1][index]

    def slice(self, tensor: Tensor, index: int) -> Tensor:
        """The rows of `tensor` that belong to part `index`."""
        return tensor.split(self.sizes)[index]

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """The parts save themselves."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """The parts load themselves."""


class PackedPart(nn.Module):
    """Stands where a linear stood; the first part of a pack owns it, so that it moves with the model once."""

    plain = True
    """Its output is W x + b and nothing else (see forms.linear.plain_weight)."""

    def __init__(self, packed: Packed, index: int) -> None:
        super().__init__()
        self.index = index
        self.in_features, self.out_features = packed.weight.shape[1], packed.sizes[index]
        self.packed: Packed
        if index == 0:
            self.packed = packed
        else:
            object.__setattr__(self, "packed", packed)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        return self.packed(self.index, x)

    @property
    def weight(self) -> Tensor:
        """The linear's weight (out, in), a view."""
        return self.packed.slice(self.packed.weight, self.index)

    @property
    def bias(self) -> Tensor | None:
        """The linear's bias (out,), a view, where it had one."""
        bias = self.packed.bias
        return None if bias is None or not self.packed.biased[self.index] else self.packed.slice(bias, self.index)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name in ("weight", "bias"):
            tensor = getattr(self, name)
            if tensor is not None:
                destination[prefix + name] = tensor.detach().clone()

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        for name in ("weight", "bias"):
            tensor, key = getattr(self, name), prefix + name
            if tensor is None:
                continue
            if key not in state_dict:
                missing_keys.append(key)
            elif state_dict[key].shape != tensor.shape:
                error_msgs.append(f"size mismatch for {key}: {state_dict[key].shape} instead of {tensor.shape}")
            else:
                tensor.detach().copy_(state_dict[key])

    def extra_repr(self) -> str:
        """The shape, as nn.Linear prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _bias_or_zeros(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
