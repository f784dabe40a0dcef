"""What one device computes of a fused linear whose parts are dense or compressed: pure torch, no server."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimrank.forms.bits import places, unpack

Tensors = dict[str, Tensor]
"""One part's tensors under the checkpoint's names; a dense part has only `weight`."""


class FusedParts(nn.Module):
    """The outputs of several linears with one input, some rows of each, side by side; `columns` of the input are here.

    The parts' input factors are stacked into one matrix, but for those that gather their input first; joint parts share
    the one of their leader, which stands before them.
    """

    def __init__(
        self, parts: Sequence[tuple[Tensors, Tensor]], columns: Tensor, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        built = [_part(tensors, rows, columns) for tensors, rows in parts]
        firsts = [part.give_first() for part in built if not part.gathers and not part.follows]
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
        outputs, shared = [], x
        for part in self.parts:
            h = x if part.gathers else shared if part.follows else found.pop(0)
            shared = h if part.leads else shared
            outputs.append(part(h))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


class _Part(nn.Module):
    """Some rows and columns of one linear.

    gathers: it picks from the input itself, and keeps its input factor; leads, follows: of joint parts the one that has
    the input factor, and those that have none.
    """

    gathers = False
    leads = False
    follows = False
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
    """h = all of W'[P] x, of which the rows here are taken, and C h for the others of them.

    A joint part has `first` beside the checkpoint's tensors: where in h its own pivots begin.
    """

    def __init__(self, tensors: Tensors, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        pivots, others, begin = (tensors.get(name) for name in ("pivots.weight", "others.weight", "first"))
        self.leads, self.follows = begin is not None and pivots is not None, pivots is None
        pivot = unpack(tensors["chosen"], rows_of(tensors))
        place = places(pivot)
        here = (~pivot)[rows]
        needed = place[rows][here].sort().values
        order = place[rows] + (0 if begin is None else begin)
        if others is not None:
            order[here] = others.shape[1] + torch.searchsorted(needed, place[rows][here])
        self.first = None if pivots is None else _frozen(pivots[:, columns])
        self.others = None if others is None else _frozen(others[needed])
        self.order = _frozen(order)

    def forward(self, h: Tensor) -> Tensor:
        y = h if self.others is None else torch.cat([h, nn.functional.linear(h, self.others)], dim=-1)
        return y.index_select(-1, self.order)


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
    if "chosen" in tensors:
        return _Pivoted(tensors, rows, columns)
    if "kept" in tensors:
        return _KeptColumns(tensors, rows, columns)
    return (_LowRank if "down.weight" in tensors else _Dense)(tensors, rows, columns)


def rows_of(tensors: Tensors) -> int:
    """How many outputs a part has."""
    if "chosen" in tensors:
        own, others = unpack(tensors["chosen"], 8 * len(tensors["chosen"])).sum(), tensors.get("others.weight")
        return int(own) + (0 if others is None else len(others))
    return len(tensors["up.weight"] if "up.weight" in tensors else tensors["weight"])


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
