"""One budget of bytes or seconds: every unit as floats, rounded, cut, or cut and rounded, in one sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from slimrank.allocate.choices import Choices, grouped, sums
from slimrank.allocate.hull import Tradeoff, filled, sweep
from slimrank.allocate.stored import Options, Stored
from slimrank.model.units import Unit
from slimrank.spectrum.spectra import Spectra

POINTS = 20  # budgets of a frontier


@dataclass(frozen=True)
class Point:
    """What all units cost, the summed predicted loss of the best options for that, and these."""

    cost: float
    loss: float
    stored: Mapping[Unit, Stored]


@dataclass(frozen=True)
class Candidates:
    """The options of all units: an efficient curve each, and what its points stand for.

    Built once and swept for any budget.
    """

    curves: Sequence[Tradeoff]
    choices: Sequence[Choices[Stored]]
    singles: Mapping[Unit, tuple[Tradeoff, Choices[Stored]]]

    @classmethod
    def of(cls, spectra: Spectra, options: Options, gain: float) -> "Candidates":
        """Of the units of these spectra; the losses of several linears taken together are divided by 1 - gain."""
        found, every = [], dict[Unit, tuple[Tradeoff, Choices[Stored]]]()
        for unit, singles in grouped(spectra.curves, spectra.stacks).items():
            each = {single: options.alone(single, spectra.curves[single]) for single in singles}
            every |= {single: own.efficient() for single, own in each.items()}
            choices = sums(list(each.values()))
            if len(singles) > 1:
                stack = options.of_floats(unit, spectra.stacks[unit])
                choices = choices.beside(Choices(stack.costs, stack.losses / (1 - gain), stack.made))
            found.append(choices.efficient())
        curves, efficient = zip(*found, strict=True)
        return cls(curves, efficient, every)

    @property
    def least(self) -> float:
        """The least that all units can cost."""
        return float(sum(curve.costs[0] for curve in self.curves))

    @property
    def most(self) -> float:
        """What all units cost in the dearest of their grids, above which little is left to lose."""
        return sum(dearest(curve, own) for curve, own in zip(self.curves, self.choices, strict=True))

    def within(self, budget: float) -> dict[Unit, Stored]:
        """How every unit is stored within a budget of `least` or more, with the least predicted loss found."""
        places = sweep(list(self.curves), budget)
        stored = self._made(places)
        used = sum(curve.costs[i] for curve, i in zip(self.curves, places, strict=True))
        return stored | self._filled(stored, budget - used)

    def _made(self, places: Sequence[int]) -> dict[Unit, Stored]:
        """How every unit is stored at these options."""
        return {unit: one for own, i in zip(self.choices, places, strict=True) for unit, one in own.made[i].items()}

    def _filled(self, stored: Mapping[Unit, Stored], left: float) -> dict[Unit, Stored]:
        """Single units stored better for what is left, since several are swept by the hull of their sums alone."""
        alone = {
            unit: next(place for place, made in enumerate(choices.made) if made[unit] == stored[unit])
            for unit, (_, choices) in self.singles.items()
            if unit in stored
        }
        found = filled([self.singles[unit][0] for unit in alone], list(alone.values()), left)
        return {unit: self.singles[unit][1].made[place][unit] for unit, place in zip(alone, found, strict=True)}

    def at(self, budget: float) -> Point:
        """The best options found within a budget of `least` or more, without what is left being spent."""
        places = sweep(list(self.curves), budget)
        chosen = list(zip(self.curves, places, strict=True))
        return Point(
            float(sum(curve.costs[i] for curve, i in chosen)),
            float(sum(curve.losses[i] for curve, i in chosen)),
            self._made(places),
        )

    @cached_property
    def frontier(self) -> list[Point]:
        """The best found at POINTS budgets from `least` to `most`, each a constant factor above the one before."""
        ratio = self.most / self.least
        budgets = [self.least * ratio ** (step / (POINTS - 1)) for step in range(POINTS)]
        return [self.at(max(budget, self.least)) for budget in budgets]


def dearest(curve: Tradeoff, choices: Choices[Stored]) -> float:
    """The most that an option costs which is rounded; of all, where none is."""
    rounded = [
        cost for cost, made in zip(curve.costs, choices.made, strict=True) if all(one.grid for one in made.values())
    ]
    return float(max(rounded, default=curve.costs[-1]))


def summary(stored: Mapping[Unit, Stored]) -> str:
    """A sentence with how many linears are stored in which way."""
    counts: dict[str, int] = {}
    for unit, one in stored.items():
        way = "dense" if one.rank is None else "low rank"
        way += f" in {one.grid.bits} bits" if one.grid else ""
        counts[way] = counts.get(way, 0) + len(unit.names)
    return ", ".join(f"{count} {way}" for way, count in sorted(counts.items()))
