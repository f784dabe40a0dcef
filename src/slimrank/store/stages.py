"""Progress of the steps that change the model, saved by stage and part so that a killed run resumes."""

from collections.abc import Sequence

from slimrank.runtime.world import ALONE, World
from slimrank.store.pieces import Facts, Pieces
from slimrank.store.weights import Part, Weights

NOTED = "noted"  # facts by stage, those of earlier stages included


class Stages:
    """The stages of a run in order; each finishes part by part, or the model as a whole.

    Of each part only the state after its last finished stage is saved, and nothing if pieces are in memory. Several
    processes all continue with the first one's state, bit for bit.
    """

    def __init__(self, names: Sequence[str], weights: Weights, pieces: Pieces, world: World = ALONE) -> None:
        self.names, self.weights, self.pieces, self.world = tuple(names), weights, pieces, world
        self.restored: dict[Part, str] = {}

    def at(self, name: str) -> "Stage":
        """The stage of that name."""
        return Stage(self, self.names.index(name))

    def forget_unfinished(self, whole: Sequence[str]) -> None:
        """Drop the parts that a killed process saved of these stages, unless the whole stage was finished."""
        for name in whole:
            if f"{name}/done" not in self.pieces:
                for part in self.weights.parts:
                    self.pieces.drop(key_of(name, part))


class Stage:
    """One stage of a run: saves the parts it finishes with their facts, and restores them after a kill."""

    def __init__(self, stages: Stages, place: int) -> None:
        self._all, self._earlier = stages, stages.names[:place]
        self.name, self._later = stages.names[place], stages.names[place + 1 :]
        self._pieces, self._weights = stages.pieces, stages.weights

    def finished(self, part: Part) -> Facts | None:
        """Restore a part that an earlier process finished in this stage and return its facts; None if it did not."""
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
        """Save the part as it is now, replacing its state after earlier stages."""
        if self._pieces.lasting:
            self._keep(part, facts)
            self._drop_earlier(part)

    def finish_whole(self, facts: Facts) -> None:
        """Save the whole model as it is now; it counts once all parts are saved."""
        if not self._pieces.lasting:
            return
        for part in self._weights.parts:
            self._keep(part, None)
        self._pieces.save(f"{self.name}/done", {}, facts)
        for part in self._weights.parts:
            self._drop_earlier(part)

    def finished_whole(self) -> Facts | None:
        """Restore a whole stage that an earlier process finished and return its facts; None if it did not."""
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
    """The key of a part's piece in a stage; part None is everything outside the blocks."""
    return f"{stage}/{'outside' if part is None else part}"
