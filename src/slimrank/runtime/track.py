"""How long loops report progress without knowing who shows it."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")
Description = str | Callable[[], str]


class Track(Protocol):
    """Wraps an iterable so that somebody can watch it: `for x in track(items, "Calibrating", len(items))`."""

    def __call__(self, iterable: Iterable[T], description: Description, total: int) -> Iterable[T]:
        """The same items in the same order; `total` is how many there will be.

        A description that changes, such as the best so far, is a function that is asked before each item.
        """
        ...


def no_track(iterable: Iterable[T], description: Description, total: int) -> Iterable[T]:
    """The items, unwatched."""
    return iterable
