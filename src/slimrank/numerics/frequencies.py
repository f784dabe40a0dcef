"""Token frequencies of the calibration windows, and the distance of other windows from them."""

from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

LISTED = 4096  # the most frequent ids, which are counted individually
GROUPS = 8  # the most groups that a usual distance is averaged over


class Frequencies(BaseModel):
    """Counts of the most frequent token ids and of all others together, and usual distances.

    usual: pairs (number of tokens, mean distance of that many tokens of the calibration text from the rest of it).
    """

    model_config = ConfigDict(extra="forbid")

    ids: list[int]
    counts: list[int]
    others: int
    usual: list[tuple[int, float]]

    @classmethod
    def of(cls, windows: Tensor) -> "Frequencies":
        """The frequencies of calibration windows: ids (count, window), int64."""
        distinct, counts = windows.cpu().unique(return_counts=True)
        listed = counts.argsort(descending=True, stable=True)[:LISTED].sort().values
        ids, own = distinct[listed], counts[listed]
        places = _places(windows, ids)
        return cls(
            ids=ids.tolist(),
            counts=own.tolist(),
            others=windows.numel() - int(own.sum()),
            usual=[(size * windows.shape[1], round(mean, 4)) for size, mean in _usual(places, len(ids))],
        )

    def distance(self, windows: Tensor) -> float:
        """The total variation distance of the windows' token frequencies, 0 to 1; unlisted ids count as one."""
        ids = torch.tensor(self.ids)
        return _variation(_counted(_places(windows, ids), len(ids)), torch.tensor([*self.counts, self.others]))

    def usual_at(self, tokens: int) -> float | None:
        """The usual distance at the largest known size up to `tokens`; None if there is a single window."""
        known = [distance for size, distance in self.usual if size <= tokens] or [d for _, d in self.usual[:1]]
        return known[-1] if known else None


def _usual(places: Tensor, listed: int) -> Iterator[tuple[int, float]]:
    """Yield (windows, mean distance of groups of that many windows from the rest) for 1, 2, 4, ... up to half."""
    whole, size = _counted(places, listed), 1
    while 2 * size <= len(places):
        groups = [_counted(group, listed) for group in places.split(size)[: min(GROUPS, len(places) // size)]]
        yield size, sum(_variation(group, whole - group) for group in groups) / len(groups)
        size *= 2


def _places(windows: Tensor, ids: Tensor) -> Tensor:
    """Each token's index in the sorted ids, len(ids) for one that is not listed; the shape of windows."""
    flat = windows.cpu().reshape(-1)
    places = torch.searchsorted(ids, flat).clamp(max=len(ids) - 1)
    return torch.where(ids[places] == flat, places, len(ids)).reshape(windows.shape)


def _counted(places: Tensor, listed: int) -> Tensor:
    """The counts (listed + 1,) of the indices."""
    return places.reshape(-1).bincount(minlength=listed + 1)


def _variation(counts: Tensor, other: Tensor) -> float:
    """The total variation distance of two vectors of counts."""
    return float((counts.double() / counts.sum() - other.double() / other.sum()).abs().sum() / 2)
