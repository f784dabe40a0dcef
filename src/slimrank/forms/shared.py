"""Two thin factors for the matrices of all experts of a layer, which share one of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms.base import Form
from slimrank.forms.linear import permute_inputs, permute_outputs
from slimrank.forms.low_rank import LowRankShard
from slimrank.forms.quantized import matrix_of, picked
from slimrank.forms.shard import Shard


class Shared(Form):
    """W'_e = U_e V or U V_e for every expert e of a layer: the factor without an index is stored by one expert alone.

    leader: that expert and its matrix, such as 0.down_proj, beside this layer's expert; None in the leader itself.
    """

    sizes = ("leader",)
    factors = ("down", "up")
    unshare = "compress with form.shared=false"
    one: str
    """The name of the factor that is shared: down for V, up for U."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        leader: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, device=device, dtype=dtype)
        self.leader = leader
        sizes = {"down": (in_features, rank), "up": (rank, out_features)}
        for name, size in sizes.items():
            if self.leads or name != self.one:
                setattr(self, name, nn.Linear(*size, bias=False, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.first: tuple[Shared, ...] = (self,) if self.leads else ()

    @property
    def common(self) -> nn.Linear:
        """The shared factor."""
        if not self.first:
            raise SlimrankError(
                f"A layer that shares a factor wasn't linked to {self.leader}: call slimrank.forms.link."
            )
        factor: nn.Linear = getattr(self.first[0], self.one)
        return factor

    @property
    def own(self) -> nn.Linear:
        """The expert's own factor."""
        factor: nn.Linear = getattr(self, "up" if self.one == "down" else "down")
        return factor

    @property
    def steps(self) -> tuple[nn.Linear, nn.Linear]:
        """V and U."""
        return (self.common, self.own) if self.one == "down" else (self.own, self.common)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        down, up = self.steps
        y: Tensor = up(down(x))
        return y if self.bias is None else y + self.bias

    def entry(self) -> dict[str, Any]:
        """Form and rank, and the leader's name."""
        return super().entry() | ({} if self.leader is None else {"leader": self.leader})

    def leader_of(self, name: str) -> str:
        """The full name of the leader of this layer `name`."""
        return name if self.leader is None else f"{name.rsplit('.', 2)[0]}.{self.leader}"

    @classmethod
    def link_members(cls, name: str, members: Sequence[Self]) -> None:
        """Tell the members of their leader."""
        leaders = [member for member in members if member.leads]
        if len(leaders) != 1 or any(member.rank != leaders[0].rank for member in members):
            raise SlimrankError(f"The layers that share a factor of {name} are not all there, or don't fit together.")
        for member in members:
            member.first = (leaders[0],)

    @classmethod
    @torch.no_grad()
    def member(cls, factors: Mapping[str, Tensor], bias: Tensor | None, leader: str | None) -> Self:
        """A layer with V = factors["down"] (r, in) and U = factors["up"] (out, r), of which a member stores its own."""
        down, up = factors["down"], factors["up"]
        layer = cls.empty(down.shape[1], len(up), len(down), bias is not None, up.dtype, leader=leader)
        layer.to_empty(device=up.device)
        for name, factor in layer.present_factors().items():
            factor.weight.copy_(factors[name])
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
        return layer

    @classmethod
    def from_low_rank(cls, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Self:
        """The layer of a group of one."""
        return cls.member({"down": right, "up": left}, bias, None)

    @classmethod
    def count_parameters(cls, out_features: int, in_features: int, entry: dict[str, Any]) -> int:
        """r times the width of its own factor, and in the leader that of the shared one."""
        own, common = (out_features, in_features) if cls.one == "down" else (in_features, out_features)
        size: int = entry["rank"] * (own + (0 if "leader" in entry else common))
        return size

    @classmethod
    def count_outputs(cls, entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
        """The rows of U."""
        return len(tensors["up.weight"])

    def shard(self, rows: Tensor, columns: Tensor) -> Shard:
        """U[rows] and V[:, columns]."""
        down, up = self.steps
        return LowRankShard(picked(down, columns=columns), picked(up, rows))

    @torch.no_grad()
    def permute_outputs(self, order: Tensor) -> None:
        """Reorder U's rows, of a shared one once for all, and the bias."""
        if (up := self.present_factors().get("up")) is not None:
            permute_outputs(up, order)
        if self.bias is not None:
            self.bias.copy_(self.bias[order])

    def permute_inputs(self, order: Tensor) -> None:
        """Reorder V's columns, of a shared one once for all."""
        if (down := self.present_factors().get("down")) is not None:
            permute_inputs(down, order)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """W'_e (out, in) in float64."""
        down, up = self.steps
        return matrix_of(up) @ matrix_of(down)


class SharedInput(Shared):
    """y_e = U_e (V x) + b_e: r in numbers for all experts and r out for each; z = V x is computed once for a token."""

    form = "shared_input"
    one = "down"


class SharedOutput(Shared):
    """y_e = U (V_e x_e) + b_e: r out numbers for all experts and r in for each; U multiplies their sum once."""

    form = "shared_output"
    one = "up"


SIDES: dict[str, type[Shared]] = {"input": SharedInput, "output": SharedOutput}
"""By the side of the weights whose factor is shared."""


def side_of(form: str) -> Any:
    """The side of a form, "input" or "output"; None for one that shares no factor among experts."""
    return next((side for side, own in SIDES.items() if own.form == form), None)
