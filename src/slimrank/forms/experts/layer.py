"""Compressed experts: the matrices of all experts of a layer in two stacks, in the place of the fused module."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms.base import Form
from slimrank.forms.experts.entries import Entry, packed, unpacked
from slimrank.forms.experts.fused import Layout, activation, layout_of, norm_of
from slimrank.forms.experts.stack import Stack, is_dense
from slimrank.forms.experts.stand_in import StandIn
from slimrank.forms.experts.unfolded import Unfolded, unfolded
from slimrank.forms.linear import bias_of, weight_of
from slimrank.forms.shared import Shared
from slimrank.forms.table import form_of

STACKS = ("ups", "downs")
"""The names of the stacks; PEFT takes a module by the end of its name, and low-rank factors are called up and down."""


class Experts(StandIn):
    """Computes what fused experts do from the stacks `ups` and `downs` (see Stack), the tokens sorted by expert.

    It carries an empty buffer (experts, 0, 0) under the name of each fused parameter: transformers without slimrank
    then stops at a size mismatch, where it would otherwise load random experts.
    """

    form: ClassVar[str] = "experts"

    def __init__(self, fused: nn.Module, layout: Layout, up: Stack, down: Stack) -> None:
        """fused: the module in whose place this stands; of it the activation and other modules are kept."""
        super().__init__(without_parameters(fused), layout)
        self.ups, self.downs = up, down
        for name in layout.roles:
            self.register_buffer(name, torch.empty(layout.experts, 0, 0, device=up.device, dtype=up.dtype))
        self.train(fused.training)

    @classmethod
    def of(cls, experts: Unfolded) -> Self:
        """The layer of unfolded experts, some of whose linears are compressed."""
        members = [experts.expert(number) for number in range(experts.layout.experts)]
        stacks = [Stack.of([member[role] for member in members], shape_of(experts, role)) for role in members[0]]
        return cls(experts.fused, experts.layout, *stacks)

    @classmethod
    def shell(cls, fused: nn.Module, entry: Entry) -> Self:
        """An uninitialised layer in the place of `fused`, on its device and in its dtype, as `entry` says."""
        layout = layout_of(fused)
        assert layout is not None, "the caller found fused experts"
        first = fused.get_parameter(layout.up)
        stacks = []
        for role, key in zip(layout.roles, STACKS, strict=True):
            matrix = fused.get_parameter(role)
            rows, columns = matrix.shape[:0:-1] if layout.transposed else matrix.shape[1:]
            entries = unpacked(entry[key], layout.experts)
            stacks.append(Stack(rows, columns, entries, layout.biased, first.dtype).to_empty(device=first.device))
        return cls(fused, layout, *stacks)

    @staticmethod
    def check(name: str, entry: Entry) -> None:
        """Raise a SlimrankError where `entry` of the experts `name` can't be read."""
        for key in STACKS:
            columns = entry.get(key)
            if not isinstance(columns, dict) or "form" not in columns:
                raise SlimrankError(f"The experts {name} have no key {key} that says each one's form: fetch it again.")
            count = max([len(value) for value in columns.values() if isinstance(value, list)], default=1)
            for one in unpacked(columns, count):
                if not is_dense(one):
                    form_of(f"{name}.{key}", one, 0)

    def entry(self) -> Entry:
        """The layer's JSON: of each stack the experts' entries, as `packed` writes them."""
        return {"form": self.form, "ups": packed(self.ups.entries), "downs": packed(self.downs.entries)}

    def entries(self) -> list[Entry]:
        """The entries of all compressed matrices."""
        return [entry for stack in (self.ups, self.downs) for entry in stack.entries if not is_dense(entry)]

    def mapped(self, change: Callable[[Form], Form]) -> Self:
        """The layer with a change of every compressed matrix, alone in its form."""
        stacks = []
        for stack in (self.ups, self.downs):
            members = stack.members()
            shape = stack.out_features, stack.in_features
            stacks.append(Stack.of([change(one) if isinstance(one, Form) else one for one in members], shape))
        return type(self)(self.fused, self.layout, *stacks)

    @property
    def stacks(self) -> dict[str, Stack]:
        """The stacks by the fused parameters' names."""
        return dict(zip(self.layout.roles, (self.ups, self.downs), strict=True))

    def count_parameters(self) -> int:
        """How many numbers the experts' matrices store, indices included, without biases."""
        return self.ups.count_parameters() + self.downs.count_parameters()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the fused module's."""
        arguments = self.layout.arguments
        if not arguments:
            return self._parts(hidden_states)
        index, weights = (*args, *(kwargs[name] for name in arguments[len(args) :]))
        k, flat = index.shape[-1], index.reshape(-1)
        counts = torch.bincount(flat, minlength=self.layout.experts).tolist()[: self.layout.experts]
        order = flat.argsort(stable=True)[: sum(counts)]
        tokens = order // k
        z = self._computed(self.ups.before(hidden_states)[tokens], counts)
        y, after = self._finished(z, counts)
        y = (y * weights.reshape(-1)[order, None]).to(hidden_states.dtype)
        sums = y.new_zeros(len(hidden_states), y.shape[-1]).index_add_(0, tokens, y)
        return self.downs.after(sums) if after else sums

    def _parts(self, hidden_states: Tensor) -> Tensor:
        parts = hidden_states.view(self.layout.experts, -1, hidden_states.shape[-1])
        sent = (parts != 0).any(-1)
        counts = sent.sum(1).tolist()
        y, after = self._finished(self._computed(self.ups.before(parts[sent]), counts), counts)
        y = self.downs.after(y) if after else y
        return torch.zeros_like(parts).masked_scatter(sent.unsqueeze(-1), y.to(parts.dtype)).flatten(0, 1)

    def _computed(self, x: Tensor, counts: list[int]) -> Tensor:
        """What the second stack gives for x, which `before` of the first one gave, sorted by expert."""
        y = activation(self.fused, self.layout)(self.ups.finished(self.ups(x, counts), counts))
        z: Tensor = self.downs(self.downs.before(y), counts)
        return z

    def _finished(self, z: Tensor, counts: list[int]) -> tuple[Tensor, bool]:
        """The experts' outputs for what `_computed` gives, and False; or z itself, and True, where the product with the
        output factor that they share can come after their sum.
        """
        norm = norm_of(self)
        if self.downs.side == "output" and norm is None and not self.layout.biased:
            return z, True
        y = self.downs.finished(z, counts)
        return (y if norm is None else norm(y)), False

    @torch.no_grad()
    def dense(self, fused: nn.Module, dtype: torch.dtype) -> nn.Module:
        """`fused`, a module like the one this stands for, with the experts multiplied out."""
        for role, stack in self.stacks.items():
            layers = stack.members()
            weights = [layer.dense_weight() if isinstance(layer, Form) else weight_of(layer) for layer in layers]
            matrix = torch.stack([weight.to(dtype) for weight in weights])
            matrix = matrix.transpose(1, 2).contiguous() if self.layout.transposed else matrix
            fused.register_parameter(role, nn.Parameter(matrix))
            if self.layout.biased:
                biases = [layer.dense_bias() if isinstance(layer, Form) else bias_of(layer) for layer in layers]
                fused.register_parameter(f"{role}_bias", nn.Parameter(torch.stack(biases).to(dtype)))  # type: ignore[arg-type]
        for name, child in self.named_children():
            if name not in STACKS:
                fused.add_module(name, child)
        return fused


def without_parameters(fused: nn.Module) -> nn.Module:
    """A copy that has the module's settings, methods and children, and none of its own parameters."""
    bare = copy.copy(fused)
    bare._parameters, bare._modules = {}, dict(fused._modules)
    return bare


def shape_of(experts: Unfolded, role: str) -> tuple[int, int]:
    """The shape (out, in) of a role's matrices."""
    first: Any = experts.expert(0)[role]
    return first.out_features, first.in_features


@torch.no_grad()
def fold(model: nn.Module, prefix: str = "") -> None:
    """Put compressed layers of stacks in the places of the unfolded experts whose names begin with `prefix`.

    Where no linear of theirs is compressed, the fused module comes back.
    """
    for name, experts in unfolded(model).items():
        if not name.startswith(prefix):
            continue
        inside = [layer for number in range(experts.layout.experts) for layer in experts.expert(number).values()]
        if any(isinstance(layer, Form) and layer.leader and not isinstance(layer, Shared) for layer in inside):
            raise SlimrankError(f"The experts {name} share factors in a way that can't be stacked.")
        compressed = any(isinstance(layer, Form) for layer in inside)
        model.set_submodule(name, Experts.of(experts) if compressed else refilled(experts))


def refilled(experts: Unfolded) -> nn.Module:
    """The fused module, its parameters made of the linears' where it has none in memory."""
    layout, fused = experts.layout, experts.fused
    for role in layout.roles:
        if fused.get_parameter(role).is_meta:
            linears: list[Any] = [experts.expert(number)[role] for number in range(layout.experts)]
            matrix = torch.stack([linear.weight.T if layout.transposed else linear.weight for linear in linears])
            fused.register_parameter(role, nn.Parameter(matrix, requires_grad=False))
            if layout.biased:
                bias = torch.stack([linear.bias for linear in linears])
                fused.register_parameter(f"{role}_bias", nn.Parameter(bias, requires_grad=False))
    return fused  # type: ignore[no-any-return]
