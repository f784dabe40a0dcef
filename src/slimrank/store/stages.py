"""What the steps after the plan make of the model, stage by stage and block by block, and how far they came."""

from collections.abc import Sequence

from slimrank.runtime.world import ALONE, World
from slimrank.store.pieces import Facts, Pieces
from slimrank.store.weights import Part, Weights

NOTED = "noted"  # facts by stage: those of earlier ones are still asked for after a kill


class Stages:
    """The stages of a run in their order, `names`; each goes through the blocks or changes the model as a whole.

    Of a block only what the last stage made of it is kept. Nothing is kept where the pieces do not last. Of several
    processes that made the same, all go on with what the first one made, to the bit.
    """

    def __init__(self, names: Sequence[str], weights: Weights, pieces: Pieces, world: World = ALONE) -> None:
        self.names, self.weights, self.pieces, self.world = tuple(names), weights, pieces, world
        self.restored: dict[Part, str] = {}

    def at(self, name: str) -> "Stage":
        """One stage."""
        return Stage(self, self.names.index(name))

    def forget_unfinished(self, whole: Sequence[str]) -> None:
        """Drop what a killed process left of stages that count as a whole."""
        for name in whole:
            if f"{name}/done" not in self.pieces:
                for part in self.weights.parts:
                    self.pieces.drop(key_of(name, part))


class Stage:
    """One stage of a run: which parts it has finished, and what it noted of them."""

    def __init__(self, stages: Stages, place: int) -> None:
        self._all, self._earlier = stages, stages.names[:place]
        self.name, self._later = stages.names[place], stages.names[place + 1 :]
        self._pieces, self._weights = stages.pieces, stages.weights

    def finished(self, part: Part) -> Facts | None:
        """The facts of a part that an earlier process brought through this stage, now put in its place, else None."""
        if not self._pieces.lasting:
            return None
        for name in reversed([self.name, *self._later]):
            key = key_of(name, part)
            if key in self._pieces:
                if self._all.restored.get(part) != key:
                    self._all.restored[part] = key
                    self._weights.restore(part, self._pieces, key)
                noted: dict[str, Facts] = self._pieces.load(key)[1][NOTED]
                return noted[self.name]
        return None

    def finish(self, part: Part, facts: Facts | None = None) -> None:
        """Keep the part as it is now, in the place of what earlier stages made of it."""
        if self._pieces.lasting:
            self._keep(part, facts)
            self._drop_earlier(part)

    def finish_whole(self, facts: Facts) -> None:
        """Keep the model as it is now: all of its parts count, or none."""
        if not self._pieces.lasting:
            return
        for part in self._weights.parts:
            self._keep(part, None)
        self._pieces.save(f"{self.name}/done", {}, facts)
        for part in self._weights.parts:
            self._drop_earlier(part)

    def finished_whole(self) -> Facts | None:
        """The facts of a whole stage that an earlier process finished."""
        if f"{self.name}/done" not in self._pieces:
            return None
        for part in self._weights.parts:
            self.finished(part)
        return self._pieces.load(f"{self.name}/done")[1]

    def _keep(self, part: Part, facts: Facts | None) -> None:
        earlier = [key for name in self._earlier if (key := key_of(name, part)) in self._pieces]
        noted = self._pieces.load(earlier[-1])[1][NOTED] if earlier else {}
        key = key_of(self.name, part)
        self._weights.keep(part, self._pieces, key, {NOTED: {**noted, self.name: facts or {}}})
        if self._all.world.follows:
            self._weights.restore(part, self._pieces, key)
        self._all.restored[part] = key

    def _drop_earlier(self, part: Part) -> None:
        for name in self._earlier:
            self._pieces.drop(key_of(name, part))


def key_of(stage: str, part: Part) -> str:
    """Under which a part is kept in a stage; part None is what is outside the blocks."""
    return f"{stage}/{'outside' if part is None else part}"
