"""What a run works with, whatever it computes."""

from dataclasses import dataclass, field, replace

from slimrank.runtime.clock import Clock
from slimrank.runtime.track import Track, no_track
from slimrank.store.pieces import Facts, MemoryPieces, Pieces
from slimrank.store.stages import Stage
from slimrank.store.weights import Part

UNLIMITED = 2**62  # bytes


@dataclass(frozen=True)
class Run:
    """pieces: where finished work is kept; track: shows progress; clock: seconds by stage.

    room: the bytes of decompositions that may be held in memory; by default all, where the pieces end with the process,
    and none where they are on disk. stage: of the steps that change the model, the present one, if they are counted.
    """

    pieces: Pieces = field(default_factory=MemoryPieces)
    track: Track = no_track
    clock: Clock = field(default_factory=Clock)
    room: int | None = None
    stage: Stage | None = None

    @property
    def bytes_held(self) -> int:
        """The bytes of decompositions that may be held."""
        if self.room is not None:
            return self.room
        return 0 if self.pieces.lasting else UNLIMITED

    def at(self, stage: Stage) -> "Run":
        """The run in one of its stages."""
        return replace(self, stage=stage)

    def finished(self, part: Part) -> Facts | None:
        """What an earlier process noted when it finished a part in this stage, now put in its place, else None."""
        return self.stage.finished(part) if self.stage else None

    def finish(self, part: Part, facts: Facts | None = None) -> None:
        """Keep a part as it is now: this stage is done with it, also after a kill."""
        if self.stage:
            self.stage.finish(part, facts)
