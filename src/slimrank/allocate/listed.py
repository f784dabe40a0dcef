"""A sequence whose items are made when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Listed(Sequence[T], Generic[T]):
    """`size` items, each made by `make` from its index: those of all experts of a layer would take much memory."""

    size: int
    make: Callable[[int], T]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        return self.make(range(self.size)[index])
