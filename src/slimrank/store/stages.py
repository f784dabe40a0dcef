"""What the steps after the plan make of the model, stage by stage and block by block, and how far they came."""

from slimrank.runtime.world import ALONE, World
from slimrank.store.pieces import Facts, Pieces
from slimrank.store.weights import Part, Weights

NOTED = "noted"  # facts by stage: those of earlier ones are still asked for after a kill


class Stages:
    """A stage goes through the blocks one by one, or changes the model as a whole.

    Of a block only what the last stage made of it is kept. Nothing is kept where the pieces do not last. Of several
    processes that made the same, all go on with what the first one made, to the bit.
    """

    def __init__(self, weights: Weights, pieces: Pieces, world: World = ALONE) -> None:
        self.weights, self.pieces, self.world = weights, pieces, world
        self._begun: list[str] = []
        self._later: list[str] = []
        self._restored: dict[Part, str] = {}

    @property
    def stage(self) -> str:
        """The present stage's name; a refiner may also be run alone."""
        return self._begun[-1] if self._begun else "alone"

    def begin(self, stage: str, later: list[str]) -> None:
        """The next stage; `later` are the ones behind it."""
        self._begun.append(stage)
        self._later = later

    def forget_unfinished(self, whole: list[str]) -> None:
        """Drop what a killed process left of stages that count as a whole."""
        for stage in whole:
            if f"{stage}/done" not in self.pieces:
                for part in self.weights.parts:
                    self.pieces.drop(self._key(stage, part))

    def finished(self, part: Part) -> Facts | None:
        """The facts of a part that an earlier process brought through this stage, now put in its place."""
        if not self.pieces.lasting:
            return None
        for stage in reversed([self.stage, *self._later]):
            key = self._key(stage, part)
            if key in self.pieces:
                if self._restored.get(part) != key:
                    self._restored[part] = key
                    self.weights.restore(part, self.pieces, key)
                noted: dict[str, Facts] = self.pieces.load(key)[1][NOTED]
                return noted[self.stage]
        return None

    def finish(self, part: Part, facts: Facts | None = None) -> None:
        """Keep the part as it is now, in the place of what earlier stages made of it."""
        if self.pieces.lasting:
            self._keep(part, facts)
            self._drop_earlier(part)

    def finish_whole(self, facts: Facts) -> None:
        """Keep the model as it is now: all of its parts count, or none."""
        if not self.pieces.lasting:
            return
        for part in self.weights.parts:
            self._keep(part, None)
        self.pieces.save(f"{self.stage}/done", {}, facts)
        for part in self.weights.parts:
            self._drop_earlier(part)

    def finished_whole(self) -> Facts | None:
        """The facts of a whole stage that an earlier process finished."""
        if f"{self.stage}/done" not in self.pieces:
            return None
        for part in self.weights.parts:
            self.finished(part)
        return self.pieces.load(f"{self.stage}/done")[1]

    def _keep(self, part: Part, facts: Facts | None) -> None:
        earlier = [key for stage in self._begun[:-1] if (key := self._key(stage, part)) in self.pieces]
        noted = self.pieces.load(earlier[-1])[1][NOTED] if earlier else {}
        key = self._key(self.stage, part)
        self.weights.keep(part, self.pieces, key, {NOTED: {**noted, self.stage: facts or {}}})
        if self.world.follows:
            self.weights.restore(part, self.pieces, key)
        self._restored[part] = key

    def _drop_earlier(self, part: Part) -> None:
        for stage in self._begun[:-1]:
            self.pieces.drop(self._key(stage, part))

    @staticmethod
    def _key(stage: str, part: Part) -> str:
        return f"{stage}/{'outside' if part is None else part}"
