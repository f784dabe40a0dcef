"""What one device computes of a fused linear whose parts are dense or compressed: pure torch, no server."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimrank.forms.bits import places, unpack

Tensors = dict[str, Tensor]
"""One part's tensors under the checkpoint's names; a dense part has only `weight`."""


class FusedParts(nn.Module):
    """The outputs of several linears with one input, some rows of each, side by side; `columns` of the input are here.

    The parts' input factors are stacked into one matrix, but for those that gather their input first.
    """

    def __init__(
        self, parts: Sequence[tuple[Tensors, Tensor]], columns: Tensor, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        built = [_part(tensors, rows, columns) for tensors, rows in parts]
        firsts = [part.give_first() for part in built if not part.gathers]
        self.parts = nn.ModuleList(built)
        self.sizes = [len(first) for first in firsts]
        self.first = _frozen(torch.cat(firsts)) if firsts else None
        self.to(device)
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        found = [] if self.first is None else list(nn.functional.linear(x, self.first).split(self.sizes, dim=-1))
        outputs = [part(x) if part.gathers else part(found.pop(0)) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


class _Part(nn.Module):
    """Some rows and columns of one linear. gathers: it picks from the input itself, and keeps its input factor."""

    gathers = False
    first: nn.Parameter | None

    def give_first(self) -> Tensor:
        """Hand over the input factor (r, in here), whose product with x `forward` then gets."""
        first, self.first = self.first, None
        assert first is not None
        return first


class _Dense(_Part):
    """Its input factor is all of it."""

    def __init__(self, tensors: Tensors, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.first = _frozen(tensors["weight"][rows][:, columns])

    def forward(self, h: Tensor) -> Tensor:
        return h


class _LowRank(_Part):
    """y = U[rows] h with h = V[:, columns] x."""

    def __init__(self, tensors: Tensors, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.first = _frozen(tensors["down.weight"][:, columns])
        self.up = _frozen(tensors["up.weight"][rows])

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h, self.up)


class _Pivoted(_Part):
    """h = all of W'[P] x, of which the rows here are taken, and C h for the others of them."""

    def __init__(self, tensors: Tensors, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        pivots, others = tensors["pivots.weight"], tensors.get("others.weight")
        others = pivots.new_empty(0, len(pivots)) if others is None else others
        pivot = unpack(tensors["chosen"], len(pivots) + len(others))
        place = places(pivot)
        here = (~pivot)[rows]
        needed = place[rows][here].sort().values
        order = place[rows].clone()
        order[here] = len(pivots) + torch.searchsorted(needed, place[rows][here])
        self.first = _frozen(pivots[:, columns])
        self.others = _frozen(others[needed])
        self.order = _frozen(order)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h, nn.functional.linear(h, self.others)], dim=-1).index_select(-1, self.order)


class _KeptColumns(_Part):
    """y = [W_K, U] [x_K, V x_rest], with the kept and the other columns that are here."""

    gathers = True

    def __init__(self, tensors: Tensors, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        kept = torch.zeros(tensors["down.weight"].shape[1] + len(tensors["kept"]), dtype=torch.bool)
        kept[tensors["kept"].long()] = True
        place = places(kept)[columns]
        here = kept[columns]
        columns_kept, left = tensors["up.weight"][rows].split([int(kept.sum()), len(tensors["down.weight"])], dim=1)
        self.down = _frozen(tensors["down.weight"][:, place[~here]])
        self.up = _frozen(torch.cat([columns_kept[:, place[here]], left], dim=1))
        self.kept, self.rest = _frozen(here.nonzero()[:, 0]), _frozen((~here).nonzero()[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.linear(x.index_select(-1, self.rest), self.down)
        return nn.functional.linear(torch.cat([x.index_select(-1, self.kept), h], dim=-1), self.up)


def _part(tensors: Tensors, rows: Tensor, columns: Tensor) -> _Part:
    """The form is told by which tensors there are."""
    if "pivots.weight" in tensors:
        return _Pivoted(tensors, rows, columns)
    if "kept" in tensors:
        return _KeptColumns(tensors, rows, columns)
    return (_LowRank if "down.weight" in tensors else _Dense)(tensors, rows, columns)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
