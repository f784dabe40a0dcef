"""Run: the storage, progress and clock that every step of a run uses."""

from dataclasses import dataclass, field, replace

from slimrank.runtime.clock import Clock
from slimrank.runtime.track import Track, no_track
from slimrank.store.pieces import Facts, MemoryPieces, Pieces
from slimrank.store.stages import Stage
from slimrank.store.weights import Part

UNLIMITED = 2**62  # bytes


@dataclass(frozen=True)
class Run:
    """pieces: storage of finished work; track: shows progress; clock: seconds by stage.

    room: bytes of decompositions that may be held in memory, by default unlimited with pieces in memory and 0 with
    pieces on disk. stage: the current one of the steps that change the model, None outside them.
    """

    pieces: Pieces = field(default_factory=MemoryPieces)
    track: Track = no_track
    clock: Clock = field(default_factory=Clock)
    room: int | None = None
    stage: Stage | None = None

    @property
    def bytes_held(self) -> int:
        """Bytes of decompositions that may be held in memory."""
        if self.room is not None:
            return self.room
        return 0 if self.pieces.lasting else UNLIMITED

    def at(self, stage: Stage) -> "Run":
        """The same run at a stage."""
        return replace(self, stage=stage)

    def finished(self, part: Part) -> Facts | None:
        """Restore a part that an earlier process finished in this stage and return its facts; None if it did not."""
        return self.stage.finished(part) if self.stage else None

    def finish(self, part: Part, facts: Facts | None = None) -> None:
        """Save a part as finished in this stage."""
        if self.stage:
            self.stage.finish(part, facts)
