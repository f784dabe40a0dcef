"""How long loops report progress without knowing who shows it."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable so that somebody can watch it: `for x in track(items, "Calibrating", len(items))`."""

    def __call__(self, iterable: Iterable[T], description: str, total: int) -> Iterable[T]:
        """The same items in the same order; `total` is how many there will be."""
        ...


def no_track(iterable: Iterable[T], description: str, total: int) -> Iterable[T]:
    """The items, unwatched."""
    return iterable
