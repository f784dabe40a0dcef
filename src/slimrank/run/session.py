"""The working state of one compression: the values that the pipeline has made so far."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.calibrate import Moments, Windows
from slimrank.calibrate.stream import Stream, final_states
from slimrank.factorize import Factorizer, Target
from slimrank.metric import Grams, Metric, Site
from slimrank.model.decoder import Decoder, set_module
from slimrank.model.linear import shape_of, weight_of
from slimrank.runtime.clock import Clock
from slimrank.runtime.track import Track, no_track
from slimrank.runtime.world import World
from slimrank.spectrum.decomposition import Curve, Decomposition, LinearSpectrum, Spectrum, decompose_again
from slimrank.store.pieces import Facts, MemoryPieces, Pieces
from slimrank.store.stages import Stages
from slimrank.store.weights import Part

ALL = 2**62  # bytes
Group = tuple[str, ...]
"""Linears that are factorised as one, in the order in which they run; mostly one alone."""


class Decompositions(dict[str, Decomposition]):
    """Decompositions by linear, made when they are asked for, and held as far as `room` bytes go."""

    def __init__(self, make: Callable[[str], Decomposition], room: int) -> None:
        self._make, self.room = make, room

    def __missing__(self, name: str) -> Decomposition:
        made = self._make(name)
        self.hold(name, made)
        return made

    def hold(self, name: str, made: Decomposition) -> None:
        """Keep a linear's decomposition, if there is room for it."""
        if made.nbytes <= self.room - self.nbytes:
            self[name] = made

    @property
    def nbytes(self) -> int:
        """What those that are held take."""
        return sum(one.nbytes for one in self.values())


@dataclass
class Session:
    """What the steps share. linears: per block, the dense linears by name, also after others took their place.

    choices: by linear, what the metric settled by measuring; found: by linear, what the form searched for; pieces:
    where what is finished is kept; bases: whether the decompositions will be asked for, and not the curves alone;
    curves: by the names of a group; joint: the groups of several linears that the plan factorises as one; clock: by
    which steps inside a stage count their time apart.
    """

    decoder: Decoder
    linears: list[dict[str, nn.Module]]
    windows: Windows
    metric: Metric
    form: Factorizer
    keep: float
    moments: Moments
    held_out: Moments
    choices: dict[str, float] = field(default_factory=dict)
    found: dict[str, dict[int, Any]] = field(default_factory=dict)
    track: Track = no_track
    pieces: Pieces = field(default_factory=MemoryPieces)
    bases: bool = True
    curves: dict[Group, Curve] = field(default_factory=dict)
    joint: tuple[Group, ...] = ()
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.decompositions = Decompositions(
            lambda name: self.decomposed((name,)), room=0 if self.pieces.lasting else ALL
        )
        self._dense_held_out: Stream | None = None
        self.stages = Stages(self.decoder.weights, self.pieces, self.world)

    @property
    def world(self) -> World:
        """The processes that share the work."""
        return self.decoder.world

    @property
    def dense(self) -> dict[str, nn.Module]:
        """Every dense linear by name."""
        return {name: module for block in self.linears for name, module in block.items()}

    @property
    def groups(self) -> tuple[Group, ...]:
        """The linears of one module that share an input and that the form may join: together taller than wide."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, leader in self.moments.leader.items() if self.form.joins else ():
            found.setdefault((name.rpartition(".")[0], leader), []).append(name)
        groups = [tuple(names) for names in found.values() if len(names) > 1]
        return tuple(group for group in groups if self.tall(group))

    def shape(self, group: Group) -> tuple[int, int]:
        """Of a group's weights on each other (sum of m_i, n)."""
        shapes = [shape_of(self.dense[name]) for name in group]
        return sum(rows for rows, _ in shapes), shapes[0][1]

    def tall(self, group: Group) -> bool:
        """Whether a group's weights on each other have more rows than columns."""
        rows, columns = self.shape(group)
        return rows > columns

    def units(self, names: Iterable[str]) -> list[Group]:
        """What the plan factorises as one, of these linears, in their order."""
        found = {name: group for group in self.joint for name in group}
        return list(dict.fromkeys(found.get(name, (name,)) for name in names))

    def site(self, name: str) -> Site:
        """A linear as a metric sees it."""
        with self.decoder.weights.hold(self.decoder.weights.part_of(name)):
            weight = weight_of(self.dense[name]).detach()
        return Site(
            name,
            weight,
            self.moments.input_of(name),
            self.held_out.inputs.get(self.moments.leader[name]),
            self.moments.outputs.get(name),
            self.keep,
            self.role(name),
            self.choices,
        )

    def target(self, name: str, rank: int | None = None) -> Target:
        """A linear as a factorizer sees it; rank: the largest it will be cut to, all by default."""
        site, found = self.site(name), self.found.setdefault(name, {})
        known = (
            self.decompositions[name] if rank is None or name in self.decompositions else self.decomposed((name,), rank)
        )
        return Target(self.dense[name], site.weight, self.metric.grams(site), known, found)

    def stack(self, group: Group) -> tuple[Tensor, Grams]:
        """The weights of a group's linears on each other (sum of m_i, n), and their metric, the first one's inputs'."""
        sites = [self.site(name) for name in group]
        if len(sites) == 1:
            return sites[0].weight, self.metric.grams(sites[0])
        grams = Grams(self.metric.stacked_gram(sites), self.metric.right_gram(sites[0]))
        return torch.cat([site.weight for site in sites]), grams

    def decomposed(self, group: Group, rank: int | None = None) -> Decomposition:
        """A group's decomposition, to be cut to that rank at most."""
        known, (weight, grams) = self.curves.get(group), self.stack(group)
        pair = None
        if known is not None and known.basis is not None:
            pair = (known.values.to(weight.device), known.basis.to(weight.device))
        return decompose_again(weight, grams, self.metric.route, pair, rank)

    def role(self, name: str) -> str:
        """A linear's name inside its block."""
        return self.decoder.role(name)

    def told(self, names: Collection[str]) -> str:
        """Linears for a sentence: up to three by name, more by their roles and in how many blocks."""
        if len(names) <= 3:
            return ", ".join(names)
        counts = Counter(self.role(name) for name in names)
        return ", ".join(f"{role} of {count} block{'s' * (count > 1)}" for role, count in counts.items())

    def block_of(self, group: Group) -> int:
        """The block that a group is in."""
        return next(index for index, block in enumerate(self.linears) if group[0] in block)

    def work(self, group: Group) -> float:
        """What decomposing a group, stacked to (m, n), costs, m n min(m, n), to deal out the work by."""
        shape = self.shape(group)
        return math.prod(shape) * min(shape)

    def spectrum(self) -> Spectrum:
        """The spectra of all linears, in the model's order."""
        return Spectrum(
            {
                name: LinearSpectrum(self.curves[name,].values, shape_of(dense), index, self.role(name))
                for index, block in enumerate(self.linears)
                for name, dense in block.items()
            }
        )

    def joint_spectra(self) -> dict[Group, LinearSpectrum]:
        """Those of the stacked groups."""
        return {
            group: LinearSpectrum(
                self.curves[group].values,
                self.shape(group),
                self.block_of(group),
                "+".join([self.role(group[0]), *(name.rpartition(".")[2] for name in group[1:])]),
            )
            for group in self.groups
        }

    def finished(self, block: Part) -> Facts | None:
        """What `finish` noted of the block in this stage, by an earlier process; None if it is still to be done.

        block: None for what is outside the blocks.
        """
        return self.stages.finished(block)

    def finish(self, block: Part, facts: Facts | None = None) -> None:
        """Keep the block as it is now: this stage is done with it, also after a kill."""
        self.stages.finish(block, facts)

    @contextmanager
    def replaced(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Put other modules in the place of linears for a while."""
        model = self.decoder.model
        before = {name: model.get_submodule(name) for name in modules}
        for name, module in modules.items():
            set_module(model, name, module)
        try:
            yield
        finally:
            for name, module in before.items():
                set_module(model, name, module)

    @contextmanager
    def as_dense(self, linears: dict[str, nn.Module] | None = None) -> Iterator[None]:
        """The dense model again, also where refiners changed norms and biases; linears: these alone, all by default."""
        with self.replaced(self.dense if linears is None else linears), self.decoder.weights.dense_vectors():
            yield

    def dense_held_out(self) -> Stream:
        """The held-out windows behind the dense model's last block; computed once."""
        if self._dense_held_out is None:
            with self.as_dense():
                self._dense_held_out = final_states(self.decoder, self.windows.held_out)
        return self._dense_held_out
