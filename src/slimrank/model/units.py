"""Units: what is factorised as one."""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

Shape = tuple[int, int]
Side = Literal["input", "output"]


@dataclass(frozen=True)
class Unit:
    """One linear, or several of one module that read the same input, or one matrix of all experts of a module.

    names: the linears in the order in which they run; block: the decoder block they are in; role: their name inside
    the block, such as self_attn.q_proj or self_attn.q_proj+k_proj+v_proj; shapes: (m_i, n_i) of each. mixture: the name
    of the module of experts of which this is one's matrix, which may get rank 0; None for any other linear. shared: of
    a unit of all experts' matrices, whether their input or output factor is one; None for any other unit.
    """

    names: tuple[str, ...]
    block: int
    role: str
    shapes: tuple[Shape, ...]
    mixture: str | None = field(default=None, compare=False)
    shared: Side | None = None

    @property
    def leader(self) -> str:
        """The first linear."""
        return self.names[0]

    @property
    def key(self) -> str:
        """A name for files and messages."""
        if self.shared:
            place, number, matrix = self.leader.rsplit(".", 2)
            return f"{place}.{number}-{self.names[-1].split('.')[-2]}.{matrix}"
        return "+".join(self.names)

    @property
    def local(self) -> str:
        """The first linear's name beside the others: in its module, or of experts in the module of them all."""
        return ".".join(self.leader.split(".")[-2 if self.shared else -1 :])

    @property
    def type(self) -> str:
        """The role without the numbers in it, which is the same for all experts of a mixture."""
        return ".".join("*" if part.isdigit() else part for part in self.role.split("."))

    @property
    def shape(self) -> Shape:
        """Of the stacked weight (sum of m_i, n), or (m, sum of n_i) where the output factor is shared."""
        if self.shared == "output":
            return self.shapes[0][0], sum(columns for _, columns in self.shapes)
        return sum(rows for rows, _ in self.shapes), self.shapes[0][1]

    @property
    def full_rank(self) -> int:
        """The largest rank of the stacked weight."""
        return min(self.shape)

    @property
    def parameters(self) -> int:
        """Numbers in the dense weights."""
        return math.prod(self.shape)

    @property
    def work(self) -> int:
        """What decomposing it costs, m n min(m, n), to deal out the work by."""
        return self.parameters * self.full_rank

    @property
    def tall(self) -> bool:
        """Whether the stacked weight has more rows than columns."""
        return self.shape[0] > self.shape[1]


def stacked(units: Collection[Unit]) -> Unit:
    """The unit of several linears that share their input."""
    first, *others = units
    return Unit(
        tuple(name for unit in units for name in unit.names),
        first.block,
        "+".join([first.role, *(unit.leader.rpartition(".")[2] for unit in others)]),
        tuple(shape for unit in units for shape in unit.shapes),
    )


def shared(units: Collection[Unit], side: Side) -> Unit:
    """The unit of one matrix of several experts of a module."""
    first = next(iter(units))
    names = tuple(name for unit in units for name in unit.names)
    shapes = tuple(shape for unit in units for shape in unit.shapes)
    return Unit(names, first.block, first.type, shapes, shared=side)


def described(units: Collection[Unit]) -> str:
    """Units for a sentence: up to three by name, more by their types and the number of blocks, and of experts there."""
    if len(units) <= 3:
        return ", ".join(unit.key for unit in units)
    counts, blocks = Counter(unit.type for unit in units), dict[str, set[int]]()
    for unit in units:
        blocks.setdefault(unit.type, set()).add(unit.block)
    several = {kind: f"{counts[kind]} of " * (counts[kind] > len(blocks[kind])) + kind for kind in counts}
    return ", ".join(f"{several[kind]} of {len(own)} block{'s' * (len(own) > 1)}" for kind, own in blocks.items())
