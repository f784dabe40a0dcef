"""One pivoted factorisation for several linears that read one input: they share the product with the input factor."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms.bits import packed_bytes
from slimrank.forms.pivoted import Pivoted
from slimrank.numerics.pivots import pivot_rows


class Joint(Pivoted):
    """A member of a group whose stacked weight W' (sum of out_i, in) has rank r: y = scatter(z_own, C z) + b.

    z = W'[P] x holds r rows of the stack, the first member's pivots first. That member, the leader, stores W'[P] as
    `pivots` (r, in) and computes z once for all; z_own = z[first : first + own] are this member's own pivots, `others`
    holds C (out - own, r). Over the group that is r (sum of out_i + in) - r^2 numbers and a bit for every row.
    leader: the name of the leader beside this module, None in the leader itself.
    """

    form = "joint"
    sizes = ("first", "own", "leader")
    unshare = "compress with form.joint=false"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        first: int = 0,
        own: int | None = None,
        leader: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        own = rank if own is None else own
        whole = type(first) is int and type(own) is int and isinstance(leader, str | None)
        if not whole or first < 0 or not 0 <= own <= min(out_features, rank - first):
            raise SlimrankError(
                f"A joint layer of {out_features} outputs and rank {rank} can't have {own!r} pivots from {first!r} on "
                f"beside {leader or 'itself'!r}."
            )
        leads = leader is None
        super().__init__(in_features, out_features, rank, bias, own=own, leads=leads, device=device, dtype=dtype)
        self.first, self.leader = first, leader
        self.members: tuple[Joint, ...] = (self,) if leads else ()
        self.held: tuple[Tensor, Tensor] | None = None

    @property
    def group(self) -> "tuple[Joint, ...]":
        """The layers that share the pivots, the leader first."""
        if not self.members:
            raise SlimrankError(f"A joint layer wasn't linked to its leader, {self.leader}: call slimrank.forms.link.")
        return self.members

    @property
    def right(self) -> nn.Linear:
        """W'[P] of the whole group, which the leader stores."""
        return self.group[0].pivots

    def pivoted(self, x: Tensor) -> Tensor:
        """z (..., r), held between the leader's call and the last member's with the very same x."""
        lead = self.group[0]
        held = lead.held  # read once: another thread may call in between
        if lead is self or held is None or held[0] is not x:
            held = x, lead.pivots(x)
        keep = self is not self.group[-1] and not torch.compiler.is_exporting()
        lead.held = held if keep else None
        return held[1]

    def entry(self) -> dict[str, Any]:
        """Form and rank, the place of its pivots in z, and the leader's name."""
        named = {} if self.leader is None else {"leader": self.leader}
        return super().entry() | {"first": self.first, "own": self.own} | named

    @classmethod
    def link_members(cls, name: str, members: Sequence[Self]) -> None:
        """Tell the members of each other; their own pivots must be, one after the other, all that the leader stores."""
        group = sorted(members, key=lambda member: (not member.leads, member.first))
        ends = [0, *(member.first + member.own for member in group)]
        fits = [member.first for member in group] == ends[:-1] and {m.rank for m in group} == {ends[-1]}
        if not (fits and group[0].leads):
            raise SlimrankError(f"The layers that share the pivots of {name} are not all there, or don't fit together.")
        _link(group)

    @staticmethod
    def count_parameters(out_features: int, in_features: int, entry: dict[str, Any]) -> int:
        """(out - own) r, a byte for every eight rows, and in the leader r in."""
        rank = entry["rank"]
        shared = 0 if "leader" in entry else rank * in_features
        return shared + (out_features - entry["own"]) * rank + packed_bytes(out_features)

    @classmethod
    def from_low_rank(cls, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Self:
        """The layer of a group of one."""
        (layer,) = joint_layers(left, right, [len(left)], [bias])
        assert isinstance(layer, cls)
        return layer


@torch.no_grad()
def joint_layers(
    left: Tensor, right: Tensor, sizes: Sequence[int], biases: Sequence[Tensor | None], leader: str | None = None
) -> list[Joint]:
    """The linked layers of a group with the stacked W' = left (sum of sizes, r) @ right (r, in).

    They take left's dtype and device. sizes: the outputs of each layer; biases: of each, None where it has none;
    leader: the first one's name in the module that holds them all, needed where there is more than one.
    """
    rank = left.shape[1]
    rows, combinations = pivot_rows(left)
    chosen = torch.zeros(len(left), dtype=torch.bool, device=left.device).index_fill(0, rows[:rank], True).split(sizes)
    others = combinations.split([int((~part).sum()) for part in chosen])
    layers, first = list[Joint](), 0
    for part, coefficients, bias in zip(chosen, others, biases, strict=True):
        own, name = int(part.sum()), leader if layers else None
        place: dict[str, Any] = {"first": first, "own": own, "leader": name}
        layer = Joint.empty(right.shape[1], len(part), rank, bias is not None, left.dtype, **place)
        layer.to_empty(device=left.device)
        if layer.leads:
            layer.pivots.weight.copy_(left[rows[:rank]].double() @ right.double())
        layer.fill(part, coefficients, bias)
        layers.append(layer)
        first += own
    _link(layers)
    return layers


def _link(members: Sequence[Joint]) -> None:
    for member in members:
        member.members = tuple(members)
