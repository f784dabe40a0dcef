"""What every form of a compressed linear layer offers."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from slimrank.forms.quantized import quantize_factors
from slimrank.model.linear import shape_of, weight_of


class Form(nn.Module):
    """A linear layer whose weight W' (out, in) is stored as factors.

    Each form carries an empty buffer `weight` under the name of the dense layer's weight. It guards the checkpoint:
    transformers without slimrank then stops at a size mismatch, where it would otherwise load random weights.

    LoRA attaches to the factors, which are nn.Linear: with PEFT, `target_modules="all-linear"`, or their own names,
    such as `["q_proj.down", "q_proj.up"]`. The form itself (`["q_proj"]`) is no target, since a dense update can't be
    merged into factors of a lower rank; PEFT says so.
    """

    form: ClassVar[str]
    """The form's name in the checkpoint's config."""

    bits: int | None = None
    """Of the factors' stored numbers, where they are quantized."""

    sizes: ClassVar[tuple[str, ...]] = ()
    """What of its shape the entry says beside the rank, for __init__, which has a default where it doesn't."""

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.register_buffer("weight", torch.empty(0, device=device, dtype=dtype))

    @classmethod
    def shell(
        cls,
        dense: nn.Module,
        entry: dict[str, Any],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """An uninitialised module in place of `dense` (nn.Linear or Conv1D), on its device and in its dtype by default.

        `entry` is the layer's JSON, such as {"form": "low_rank", "rank": 32}.
        """
        weight = weight_of(dense)
        out_features, in_features = shape_of(dense)
        has_bias = getattr(dense, "bias", None) is not None
        sizes = {size: entry[size] for size in cls.sizes if size in entry}
        shell = cls.empty(in_features, out_features, entry["rank"], has_bias, dtype or weight.dtype, **sizes)
        shell.use_bits(entry.get("bits"))
        return shell.to_empty(device=device or weight.device)

    def use_bits(self, bits: int | None) -> None:
        """Store the factors in so many bits; their values are lost."""
        if bits is not None:
            quantize_factors(self, bits)
            self.bits = bits

    @classmethod
    def empty(
        cls, in_features: int, out_features: int, rank: int, bias: bool, dtype: torch.dtype, **sizes: Any
    ) -> Self:
        """A module on the meta device: no memory, no random numbers drawn."""
        build: Any = cls  # each form's own __init__ takes its bias, and its `sizes`
        module: Self = build(in_features, out_features, rank, bias=bias, device="meta", dtype=dtype, **sizes)
        return module

    @classmethod
    def from_low_rank(cls, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Self:
        """The module with W' = left @ right, left (out, r) and right (r, in); it takes left's dtype and device."""
        raise NotImplementedError

    @staticmethod
    def count_parameters(out_features: int, in_features: int, entry: dict[str, Any]) -> int:
        """How many numbers the form stores without the bias; an index counts as one."""
        raise NotImplementedError

    def entry(self) -> dict[str, Any]:
        """The layer's JSON, from which `shell` builds the same module again."""
        return {"form": self.form, "rank": self.rank} | ({} if self.bits is None else {"bits": self.bits})

    @property
    def leads(self) -> bool:
        """Whether `right` is this layer's own, and not that of a layer which it shares it with."""
        return True

    @property
    def right(self) -> nn.Linear:
        """The linear of the right factor V (r, in), or (r, in - c) where c inputs go another way."""
        raise NotImplementedError

    def left(self) -> Tensor:
        """U (out, r) in float64, with y = U (V x) + b but for what goes another way."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """W' (out, in), multiplied out in float64."""
        raise NotImplementedError

    def permute_outputs(self, order: Tensor) -> None:
        """Let output i be what output order[i] was, order (out,) int64, in place."""
        raise NotImplementedError

    def permute_inputs(self, order: Tensor) -> None:
        """Let input i be what input order[i] was, order (in,) int64, in place."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The shape, as nn.Linear prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
