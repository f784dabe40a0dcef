"""How often each token comes in the calibration windows, and how far other windows are from that."""

from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

LISTED = 4096  # ids with counts of their own
GROUPS = 8  # at most, over which a usual distance is the mean


class Frequencies(BaseModel):
    """Counts of the most frequent token ids, of all others together, and the usual distances.

    usual: pairs of a number of tokens and the distance at which so many tokens of the calibration text itself are from
    the rest of it; the fewer, the further.
    """

    model_config = ConfigDict(extra="forbid")

    ids: list[int]
    counts: list[int]
    others: int
    usual: list[tuple[int, float]]

    @classmethod
    def of(cls, windows: Tensor) -> "Frequencies":
        """Of calibration windows (count, window) ids, int64."""
        found, counts = windows.cpu().unique(return_counts=True)
        listed = counts.argsort(descending=True, stable=True)[:LISTED].sort().values
        ids, own = found[listed], counts[listed]
        places = _places(windows, ids)
        return cls(
            ids=ids.tolist(),
            counts=own.tolist(),
            others=windows.numel() - int(own.sum()),
            usual=[(size * windows.shape[1], round(mean, 4)) for size, mean in _usual(places, len(ids))],
        )

    def distance(self, windows: Tensor) -> float:
        """Total variation, 0 to 1: the share of the windows' tokens that would have to be others for equal frequencies.

        Tokens that are not listed count as one.
        """
        ids = torch.tensor(self.ids)
        return _variation(_counted(_places(windows, ids), len(ids)), torch.tensor([*self.counts, self.others]))

    def usual_at(self, tokens: int) -> float | None:
        """The usual distance of so many tokens, by the nearest smaller number known; None for a single window."""
        known = [distance for size, distance in self.usual if size <= tokens] or [d for _, d in self.usual[:1]]
        return known[-1] if known else None


def _usual(places: Tensor, listed: int) -> Iterator[tuple[int, float]]:
    """For 1, 2, 4, ... windows up to half of them: the mean distance of some groups of so many from the rest."""
    whole, size = _counted(places, listed), 1
    while 2 * size <= len(places):
        groups = [_counted(group, listed) for group in places.split(size)[: min(GROUPS, len(places) // size)]]
        yield size, sum(_variation(group, whole - group) for group in groups) / len(groups)
        size *= 2


def _places(windows: Tensor, ids: Tensor) -> Tensor:
    """Each token's place among the sorted ids, their number for one that is not there; as windows."""
    flat = windows.cpu().reshape(-1)
    places = torch.searchsorted(ids, flat).clamp(max=len(ids) - 1)
    return torch.where(ids[places] == flat, places, len(ids)).reshape(windows.shape)


def _counted(places: Tensor, listed: int) -> Tensor:
    """(listed + 1,) counts."""
    return places.reshape(-1).bincount(minlength=listed + 1)


def _variation(one: Tensor, other: Tensor) -> float:
    """Half the sum of the differences between two counts as shares."""
    return float((one.double() / one.sum() - other.double() / other.sum()).abs().sum() / 2)
