"""What every form of a compressed linear layer offers."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms.linear import bias_of, shape_of, weight_of
from slimrank.forms.outputs import Outputs
from slimrank.forms.quantized import BITS, STORED, QuantizedLinear, group_of
from slimrank.forms.shard import Shard


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

    ranked: ClassVar[bool] = True
    """Whether an entry has a rank."""

    sizes: ClassVar[tuple[str, ...]] = ()
    """The keys of an entry, beside the rank, that __init__ takes by these names; each has a default there."""

    factors: ClassVar[tuple[str, ...]]
    """The names of the factors, each an nn.Linear without bias or with the layer's; a layer may lack some."""

    tensors: ClassVar[tuple[str, ...]] = ()
    """The names of the other stored tensors, without the bias and the guard."""

    bias_name: ClassVar[str] = "bias"
    """Where the dense layer's bias is stored: "bias", or the bias of a factor, such as "up.bias"."""

    refused_bits: ClassVar[Mapping[int, str]] = {}
    """Bit widths that the factors can't have: why, and what to do instead."""

    unshare: ClassVar[str] = ""
    """How to compress so that no layer of this form shares a factor with another: the end of an error's sentence."""

    bits: int | None = None
    """The bit width of the factors' stored numbers where they are quantized."""

    per_scale: int | None = None
    """The inputs that share a scale where they are quantized, None for a whole row."""

    leader: str | None = None
    """The name, beside this layer, of the layer that stores the input factor which this one uses too."""

    weight: Tensor
    bias: Tensor | None
    """The dense layer's bias, for code that reads it; stored as `bias_name` says."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        owner, _, leaf = cls.bias_name.rpartition(".")
        if owner:
            cls.bias = property(lambda self: getattr(self.get_submodule(owner), leaf))  # type: ignore[assignment]

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

    @property
    def leads(self) -> bool:
        """Whether the layer stores its input factor itself."""
        return self.leader is None

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
        shell = cls._of_entry(in_features, out_features, entry, has_bias, dtype or weight.dtype)
        return shell.to_empty(device=device or weight.device)

    @classmethod
    def from_stored(cls, name: str, in_features: int, entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The layer `name` of a checkpoint without its bias, from its tensors under their names in the layer.

        Empty tensors may be left out.

        Raises:
            SlimrankError: for a tensor that is missing or has another shape than `entry` says.
        """
        try:
            layer = cls._of_entry(in_features, cls.count_outputs(entry, tensors), entry, False, torch.float32)
            empty = {key: torch.empty_like(t, device="cpu") for key, t in layer.state_dict().items() if not t.numel()}
            layer.load_state_dict(empty | dict(tensors), assign=True)
        except (KeyError, RuntimeError) as error:
            raise SlimrankError(
                f"The tensors of the layer {name} are not those of its entry {entry}; fetch the checkpoint again."
            ) from error
        return layer

    @classmethod
    def _of_entry(
        cls, in_features: int, out_features: int, entry: dict[str, Any], bias: bool, dtype: torch.dtype
    ) -> Self:
        """A module on the meta device, quantized where the entry says so."""
        sizes = {size: entry[size] for size in cls.sizes if size in entry}
        module = cls.empty(in_features, out_features, entry.get("rank", 0), bias, dtype, **sizes)
        module.use_bits(entry.get("bits"), entry.get("group"))
        return module

    @classmethod
    def empty(
        cls, in_features: int, out_features: int, rank: int, bias: bool, dtype: torch.dtype, **sizes: Any
    ) -> Self:
        """A module on the meta device: no memory, no random numbers drawn."""
        build: Any = cls  # each form's own __init__ takes its bias, and its `sizes`
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # at rank 0
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

    @staticmethod
    def count_outputs(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
        """How many outputs the layer of this entry has, found from its stored tensors, quantized or not."""
        raise NotImplementedError

    @classmethod
    def stored_names(cls) -> tuple[str, ...]:
        """The names of all tensors that a layer of this form may store, but for the guard and the bias."""
        return *cls.tensors, *(f"{factor}.{stored}" for factor in cls.factors for stored in STORED)

    @classmethod
    def check_bits(cls, name: str, bits: Any, group: Any = None) -> None:
        """Raise a SlimrankError if the factors of the layer `name` can't have this bit width; None means floats.

        group: the inputs that share a scale, None where the entry doesn't say.
        """
        if bits is not None and bits not in BITS:
            raise SlimrankError(f"The layer {name} has factors of {bits!r} bits; give 8, 4, 3 or 2.")
        if group is not None and (bits is None or type(group) is not int or group < 1):
            raise SlimrankError(
                f"The layer {name} has groups of {group!r} inputs and {bits!r} bits; give bits, and a group from 1 on."
            )
        if bits in cls.refused_bits:
            reason = cls.refused_bits[bits]
            raise SlimrankError(f"The layer {name} is {cls.form}, whose factors can't have {bits} bits: {reason}.")

    @classmethod
    def link_members(cls, name: str, members: Sequence[Self]) -> None:
        """Tell layers that share the input factor of the layer `name` of each other; does nothing by default.

        members: the layers of this form that name it as their leader, and itself, in no particular order.

        Raises:
            SlimrankError: naming the layer, where the members are not all there or don't fit together.
        """

    def leader_of(self, name: str) -> str:
        """The full name of the layer that stores the input factor which this layer, `name`, uses."""
        parent, dot, own = name.rpartition(".")
        return parent + dot + (self.leader or own)

    def present_factors(self) -> dict[str, Any]:
        """The factors that this layer has, by name: each an nn.Linear, or a QuantizedLinear."""
        found = {name: getattr(self, name, None) for name in self.factors}
        return {name: factor for name, factor in found.items() if factor is not None}

    def use_bits(self, bits: int | None, group: int | None = None) -> None:
        """Store the factors in so many bits; their values are lost.

        group: inputs that share a scale, by default 32 in 4 bits and else a whole row.
        """
        if bits is not None:
            self.bits, self.per_scale = bits, group_of(bits, group)
            for name, factor in self.present_factors().items():
                setattr(self, name, QuantizedLinear(factor, bits, self.per_scale))

    @torch.no_grad()
    def randomize(self) -> None:
        """Take random values, as a layer of which only the speed is asked."""
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
            else:
                tensor.random_()

    def entry(self) -> dict[str, Any]:
        """The layer's JSON, from which `shell` builds the same module again."""
        rank = {"rank": self.rank} if self.ranked else {}
        stored = {"bits": self.bits, "group": self.per_scale}
        return {"form": self.form, **rank, **{key: value for key, value in stored.items() if value is not None}}

    def dense_weight(self) -> Tensor:
        """W' (out, in), multiplied out in float64."""
        raise NotImplementedError

    def dense_bias(self) -> Tensor | None:
        """The bias (out,), detached, where the layer has one."""
        return bias_of(self.get_submodule(self.bias_name.rpartition(".")[0]))

    def outputs(self) -> Outputs | None:
        """How the outputs follow from the product with the input factor; None where only `forward` says it."""
        return None

    def shard(self, rows: Tensor, columns: Tensor) -> Shard:
        """What a device computes that has the outputs `rows` (o,) int64 and the inputs `columns` (i,) int64, ascending.

        Rows may be in any order.
        """
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
