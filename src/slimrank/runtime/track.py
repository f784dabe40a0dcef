"""The interface by which long loops report progress."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")
Description = str | Callable[[], str]


class Track(Protocol):
    """Wraps an iterable to show progress: `for x in track(items, "calibrating", len(items))`."""

    def __call__(self, iterable: Iterable[T], description: Description, total: int) -> Iterable[T]:
        """The same items in the same order; total: their number.

        description: a text, or a function called before each item for one that changes, such as the best result so far.
        """
        ...


def no_track(iterable: Iterable[T], description: Description, total: int) -> Iterable[T]:
    """The items, without showing progress."""
    return iterable
