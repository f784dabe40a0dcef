"""One matrix of every expert of a layer, each stored in a form of its own, side by side in a few flat tensors."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from slimrank.forms.base import Form
from slimrank.forms.experts.entries import DENSE, Entry
from slimrank.forms.low_rank import LowRank
from slimrank.forms.ordered import Ordered
from slimrank.forms.pivoted import Pivoted
from slimrank.forms.shared import SIDES, side_of
from slimrank.forms.table import form_of
from slimrank.numerics.take import take_last

Product = Callable[[Tensor, Mapping[str, Tensor], "Tensor | None"], Tensor]


class Stack(nn.Module):
    """y_e = W'_e x_e + b_e for every expert e, the matrices (out, in) of ranks and forms of their own.

    A tensor of an expert's form, such as `pivots.weight`, is a piece of the flat tensor `pivots` here, which holds that
    of all experts one after the other, row by row. entries: the experts' own, {"form": "dense"} for one left dense.
    Where all experts share a factor (forms.shared), `before` and `after` multiply with it, and `forward` with theirs.
    """

    anchor: Tensor

    def __init__(
        self, out_features: int, in_features: int, entries: Sequence[Entry], bias: bool, dtype: torch.dtype
    ) -> None:
        """A module on the meta device."""
        super().__init__()
        self.out_features, self.in_features, self.entries = out_features, in_features, list(entries)
        self.__dict__["shells"] = [shell_of(out_features, in_features, entry, bias, dtype) for entry in entries]
        self.register_buffer("anchor", torch.empty(0, dtype=dtype, device="meta"), persistent=False)
        self.places: list[dict[str, tuple[str, int, torch.Size]]] = []
        sizes: dict[str, int] = {}
        kinds: dict[str, Tensor] = {}
        for shell in self.__dict__["shells"]:
            own = {}
            for key, tensor in stored(shell).items():
                name = flat_name(key, tensor)
                own[key] = name, sizes.get(name, 0), tensor.shape
                sizes[name] = sizes.get(name, 0) + tensor.numel()
                kinds[name] = tensor
            self.places.append(own)
        for name, size in sizes.items():
            flat = torch.empty(size, dtype=kinds[name].dtype, device="meta")
            if flat.is_floating_point():
                self.register_parameter(name, nn.Parameter(flat))
            else:
                self.register_buffer(name, flat)

    @classmethod
    @torch.no_grad()
    def of(cls, members: Sequence[nn.Module], shape: tuple[int, int]) -> Self:
        """The stack of these layers of one shape (out, in), forms or dense linears, whose tensors are copied."""
        entries = [member.entry() if isinstance(member, Form) else {"form": DENSE} for member in members]
        first = next(t for member in members for t in member.state_dict().values() if t.is_floating_point())
        biased = any(bias_key(member) in member.state_dict() for member in members)
        stack = cls(*shape, entries, biased, first.dtype).to_empty(device=first.device)
        for own, member in zip(stack.places, members, strict=True):
            tensors = stored(member)
            for key, (name, start, size) in own.items():
                getattr(stack, name)[start : start + prod(size)] = tensors[key].reshape(-1)
        return stack

    def tensors(self, expert: int) -> dict[str, Tensor]:
        """An expert's tensors by their names in its form, views of the flat ones."""
        return {
            key: getattr(self, name)[start : start + prod(size)].view(size)
            for key, (name, start, size) in self.places[expert].items()
        }

    def members(self) -> list[nn.Module]:
        """The experts' layers, their tensors views of the stack's, those that share a factor linked."""
        made: list[Any] = [self.member(expert) for expert in range(len(self.entries))]
        if self.side:
            SIDES[self.side].link_members("the experts", made)
        return made

    @property
    def side(self) -> str | None:
        """Whether all experts share the "input" or the "output" factor; None where they share none."""
        side: str | None = side_of(self.entries[0]["form"])
        return side

    def before(self, x: Tensor) -> Tensor:
        """What `forward` takes for x (tokens, in): x, or its product with the input factor that all experts share."""
        return self.times_common(x) if self.side == "input" else x

    def after(self, z: Tensor) -> Tensor:
        """The outputs (tokens, out), without bias, for what `forward` gives, or for sums of it over experts."""
        return self.times_common(z) if self.side == "output" else z

    def finished(self, z: Tensor, counts: Sequence[int]) -> Tensor:
        """The outputs (tokens, out) for what `forward` gives, sorted by expert."""
        bias = getattr(self, "bias", None)
        if self.side != "output" or bias is None:
            return self.after(z)
        biases: Tensor = bias.view(len(counts), -1).repeat_interleave(torch.tensor(counts, device=z.device), dim=0)
        return self.after(z) + biases

    def times_common(self, x: Tensor) -> Tensor:
        """The product of x (..., in) or (..., r) with the factor that all experts share."""
        leader = next(expert for expert, entry in enumerate(self.entries) if "leader" not in entry)
        return self.times(leader, SIDES[self.side or ""].one, x)

    def times(self, expert: int, factor: str, x: Tensor) -> Tensor:
        """The product of x with one factor of an expert, by its name."""
        prefix, tensors = f"{factor}.", self.tensors(expert)
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if "bits" not in self.entries[expert]:
            return nn.functional.linear(x, own["weight"])
        result: Tensor = functional_call(getattr(self.__dict__["shells"][expert], factor), own, (x,))
        return result

    def member(self, expert: int) -> nn.Module:
        """An expert's layer, its tensors views of the stack's; one that shares a factor is not linked."""
        shell, entry = self.__dict__["shells"][expert], self.entries[expert]
        made = shell_of(self.out_features, self.in_features, entry, bias_key(shell) in stored(shell), self.dtype)
        guard = {key: torch.empty_like(t, device=self.device) for key, t in made.state_dict().items() if not t.numel()}
        made.load_state_dict(
            guard | {key: tensor.detach() for key, tensor in self.tensors(expert).items()}, assign=True
        )
        return made

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """In which its numbers are."""
        return self.anchor.dtype

    def count_parameters(self) -> int:
        """How many numbers the matrices store, indices included, without biases."""
        shape = self.out_features, self.in_features
        return sum(form_of("", entry, 0).count_parameters(*shape, entry) for entry in self.entries)

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Map x (tokens, in), sorted by expert, to y (tokens, out); counts: of each expert's tokens.

        Where a factor is shared, x is what `before` gives, and `finished` makes the outputs of y.
        """
        pieces = enumerate(x.split(list(counts)))
        parts = [self.product(expert, own) for expert, own in pieces if len(own)]
        width = self.entries[0]["rank"] if self.side == "output" else self.out_features
        return torch.cat(parts) if parts else x.new_zeros(0, width)

    def product(self, expert: int, x: Tensor) -> Tensor:
        """One expert's y (tokens, out) for its x (tokens, in)."""
        entry, shell = self.entries[expert], self.__dict__["shells"][expert]
        if self.side:
            y = self.times(expert, "up" if self.side == "input" else "down", x)
            bias = self.tensors(expert).get("bias") if self.side == "input" else None
            return y if bias is None else y + bias
        if entry["form"] in PRODUCTS and "bits" not in entry:
            return PRODUCTS[entry["form"]](x, self.tensors(expert), self._order(expert, shell))
        result: Tensor = functional_call(shell, self.tensors(expert), (x,))
        return result

    def _order(self, expert: int, shell: nn.Module) -> Tensor | None:
        """The order of a form that has one, computed at the first call."""
        if not isinstance(shell, Pivoted) or shell.order is not None:
            return getattr(shell, "order", None)
        held, shell.chosen = shell.chosen, self.tensors(expert)["chosen"]
        try:
            return shell.known_order()
        finally:
            shell.chosen = held

    def forget_orders(self) -> None:
        """To be called after the stored tensors have changed or moved."""
        for shell in self.__dict__["shells"]:
            if isinstance(shell, Ordered):
                shell.forget_order()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_orders()

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)
        self.forget_orders()
        return self

    def extra_repr(self) -> str:
        """The shape and the ranks."""
        return f"in_features={self.in_features}, out_features={self.out_features}, experts={len(self.entries)}"


def is_dense(entry: Entry) -> bool:
    """Whether an expert's matrix is left as it is."""
    return entry["form"] == DENSE and "bits" not in entry


def shell_of(out_features: int, in_features: int, entry: Entry, bias: bool, dtype: torch.dtype) -> nn.Module:
    """An expert's layer on the meta device."""
    if is_dense(entry):
        return nn.Linear(in_features, out_features, bias=bias, device="meta", dtype=dtype)
    shell = form_of("of an expert", entry, 0)._of_entry(in_features, out_features, entry, bias, dtype)
    for factor in shell.present_factors().values():
        factor.packs = False  # its tensors come with each call
    return shell


def stored(layer: nn.Module) -> dict[str, Tensor]:
    """The tensors of an expert's layer, without the guard."""
    return {
        key: tensor for key, tensor in layer.state_dict().items() if not (isinstance(layer, Form) and key == "weight")
    }


def flat_name(key: str, tensor: Tensor) -> str:
    """The name of a form's tensor in the stack: `pivots` for pivots.weight, `up_bias` for up.bias.

    A weight of whole numbers has a name of its own, `pivots_int8`, since that of another expert may be of floats.
    """
    name = key.removesuffix(".weight").replace(".", "_")
    whole = key.endswith(".weight") and not tensor.is_floating_point()
    return f"{name}_{str(tensor.dtype).removeprefix('torch.')}" if whole else name


def bias_key(layer: nn.Module) -> str:
    """The name of a layer's bias in its state dict."""
    return layer.bias_name if isinstance(layer, Form) else "bias"


def dense(x: Tensor, tensors: Mapping[str, Tensor], order: Tensor | None) -> Tensor:
    """W x + b."""
    return nn.functional.linear(x, tensors["weight"], tensors.get("bias"))


def low_rank(x: Tensor, tensors: Mapping[str, Tensor], order: Tensor | None) -> Tensor:
    """U V x + b."""
    z = nn.functional.linear(x, tensors["down.weight"])
    return nn.functional.linear(z, tensors["up.weight"], tensors.get("up.bias"))


def pivoted(x: Tensor, tensors: Mapping[str, Tensor], order: Tensor | None) -> Tensor:
    """[z, C z] in the order of the rows, plus b, with z = W'[P] x."""
    z = nn.functional.linear(x, tensors["pivots.weight"])
    others, bias = tensors.get("others.weight"), tensors.get("bias")
    y = z if others is None else torch.cat([z, nn.functional.linear(z, others)], dim=-1)
    y = y if order is None else take_last(y, order)
    return y if bias is None else y + bias


PRODUCTS: dict[str, Product] = {DENSE: dense, LowRank.form: low_rank, Pivoted.form: pivoted}
