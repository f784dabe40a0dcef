"""One factor for the matrices of all experts of a layer: its curve, and the factors at any rank (numerics.shared)."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from slimrank.model.compressible import Compressible
from slimrank.model.units import Side, Unit, shared
from slimrank.numerics.shared import Part, directions, own_factor, values
from slimrank.numerics.threads import one_thread
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra

SIDES: tuple[Side, Side] = ("input", "output")
"""Of an expert's first matrix, which reads what every token of the layer has, and of its second."""


def shared_units(model: Compressible, reached: Iterable[str]) -> list[Unit]:
    """The units of all experts of each module of experts, one for each of its two matrices."""
    alike: dict[tuple[str, str], list[Unit]] = {}
    for name in reached:
        unit = model.units[name]
        if unit.mixture:
            alike.setdefault((unit.mixture, name.rpartition(".")[2]), []).append(unit)
    roles: dict[str, list[str]] = {}
    for mixture, role in alike:
        roles.setdefault(mixture, []).append(role)
    order = list(model.units)
    return [
        shared(sorted(units, key=lambda unit: order.index(unit.leader)), SIDES[roles[mixture].index(role)])
        for (mixture, role), units in alike.items()
        if len(units) > 1
    ]


def shared_curve(spectra: Spectra, unit: Unit, keep: float) -> Curve:
    """The curve of a unit of all experts, its basis the shared factor's directions (q, q) float32; not measured."""
    choices = {name: spectra.choice(spectra.model.units[name], keep) for name in unit.names}

    def parts() -> Iterator[Part]:
        return (part_of(spectra, unit, name, choices[name]) for name in unit.names)

    with one_thread(spectra.weight(spectra.model.units[unit.leader])):
        rows = directions(parts).float()  # the own factors are the best ones for the rounded directions
        return Curve(values(parts, rows.double()), basis=rows)


def part_of(spectra: Spectra, unit: Unit, name: str, choice: float | None) -> Part:
    """One expert of a unit; choice: see Metric.chosen."""
    assert unit.shared, "a unit of all experts"
    single = spectra.model.units[name]
    return Part.of(spectra.weight(single), spectra.grams(single, choice), unit.shared)


def common_factor(spectra: Spectra, unit: Unit, rank: int) -> Tensor:
    """The shared factor (r, n), or transposed (r, m) where it is the output's, float64."""
    basis = spectra.curve(unit).basis
    assert basis is not None, "the directions are kept with the curve"
    return basis[:rank].to(spectra.model.decoder.device).double()


def factors(spectra: Spectra, unit: Unit, rank: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Each expert's name, and "down" V (r, n_e) and "up" U (m_e, r) of its weight's approximation U V, float64."""
    rows = common_factor(spectra, unit, rank)
    for name in unit.names:
        own = own_factor(part_of(spectra, unit, name, spectra.curve(spectra.model.units[name]).choice), rows)
        yield name, by_step(unit, rows, own)


def by_step(unit: Unit, rows: Tensor, own: Tensor) -> dict[str, Tensor]:
    """An expert's two factors by name; rows: the shared directions (r, n); own: (m, r), both of the transposed weight
    where the output factor is shared.
    """
    return {"down": rows, "up": own} if unit.shared == "input" else {"down": own.T, "up": rows.T}
