"""What units cost in bytes, as they will be written."""

from collections.abc import Sequence
from dataclasses import dataclass

from slimrank.allocate.stored import Stored
from slimrank.factorize import Factorizer
from slimrank.factorize.shared import form_for
from slimrank.forms import FORMS, Dense, LowRank
from slimrank.forms.quantized import stored_bytes
from slimrank.model.units import Shape, Unit
from slimrank.rounding.grid import Grid

HEADER = 92
"""Bytes of a tensor in a safetensors header beside its name, its offsets taken as long ones."""


@dataclass(frozen=True)
class Bytes:
    """form: of float factors; itemsize: bytes of a float as it is stored."""

    form: Factorizer
    itemsize: int = 2

    def of(self, unit: Unit, stored: Stored) -> float:
        """What the unit's tensors take, their places in the file's header included, without biases."""
        rank, grid = stored.rank, stored.grid
        if rank is None and grid is None:
            return unit.parameters * self.itemsize + header(unit, ("weight",))
        if grid is None:
            made = form_for(self.form, unit)
            names = {entry["form"] for entry in made.entries(unit.shapes, rank or 1)}
            tensors = (
                "weight",
                *(name for form in names for name in FORMS[form].stored_names() if "scale" not in name),
            )
            return made.cost(unit.shapes, rank or 0) * self.itemsize + header(unit, tensors)
        form = Dense if rank is None else LowRank
        payload = sum(
            stored_bytes(*shape, grid.bits, grid.group, self.itemsize) for shape in factor_shapes(unit.shape, rank)
        )
        return payload + header(unit, ("weight", *form.stored_names()))

    def knows(self, grid: Grid) -> bool:
        """True: any grid's bytes follow from its width and group."""
        return True

    def multiple(self, unit: Unit) -> int:
        """That of the form."""
        return self.form.multiple


def header(unit: Unit, tensors: Sequence[str]) -> int:
    """Bytes of the unit's tensors in a safetensors header, a little more than they will take."""
    return sum(HEADER + len(name) + len(tensor) for name in unit.names for tensor in tensors)


def factor_shapes(shape: Shape, rank: int | None) -> list[Shape]:
    """The shapes of V and U, or of W where there is no rank."""
    rows, columns = shape
    return [shape] if rank is None else [(rank, columns), (rows, rank)]
