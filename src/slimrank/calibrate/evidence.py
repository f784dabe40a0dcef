"""Evidence: the calibration windows and the dense model's statistics on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from slimrank.calibrate.collect import each_block
from slimrank.calibrate.ends import KEY, EndMoments, has_ends
from slimrank.calibrate.gradients import each_gradient
from slimrank.calibrate.moments import InputMoments, Moments, OutputMoments
from slimrank.calibrate.needs import Needs
from slimrank.calibrate.shelf import on_shelves, put_on_shelf, shelve
from slimrank.model.compressible import Compressible
from slimrank.runtime.memory import trim
from slimrank.store.run import Run
from slimrank.texts.windows import Windows

INPUTS = Needs()


@dataclass(frozen=True)
class Evidence:
    """moments: on the calibration windows; held_out: of the inputs on the held-out windows; ends: where asked for."""

    windows: Windows
    moments: Moments
    held_out: Moments
    ends: EndMoments | None = None

    def input_of(self, linear: str) -> InputMoments:
        """The moments of a linear's input on the calibration windows."""
        return self.moments.input_of(linear)

    def held_out_of(self, linear: str) -> InputMoments | None:
        """The same on the held-out windows; None if no token reached it, or once its moments were dropped."""
        return self.held_out.inputs.get(self.moments.leader[linear])

    def output_of(self, linear: str) -> OutputMoments:
        """The moments of the loss's gradient at a linear's output."""
        return self.moments.output_of(linear)


def calibrate(
    model: Compressible, windows: Windows, needs: Needs = INPUTS, run: Run | None = None, spent: Sequence[int] = ()
) -> Evidence:
    """Windows -> Evidence, saved block by block among the run's pieces.

    needs: the statistics to collect; spent: blocks whose held-out moments are no longer needed.

    Raises:
        SlimrankError: naming the linear or block that a non-finite number reached.
    """
    run = run or Run()
    decoder, blocks, pieces = model.decoder, model.blocks, run.pieces
    moments, held_out = (on_shelves(pieces, decoder.device) for _ in range(2))

    def into(shelves: Moments, group: str, walk: Any, ids: Tensor, spent: Sequence[int] = ()) -> None:
        saved = [index for index in range(len(blocks)) if f"{group}/{index}" in pieces]
        for index, collected in walk(decoder, ids, blocks, done={*saved, *spent}, track=run.track):
            shelve(collected, pieces, f"{group}/{index}")
        for index in range(len(blocks)):
            if f"{group}/{index}" in pieces:
                put_on_shelf(shelves, pieces, f"{group}/{index}")
        trim()

    if needs.gradients:
        seed = windows.record["seed"]
        ends = partial(EndMoments.save, pieces=pieces) if needs.ends and has_ends(decoder) else None
        walk = partial(each_gradient, labels=needs.labels, seed=seed, of_weights=needs.of_weights, ends=ends)
        into(moments, "gradients", walk, needs.gradient_windows(windows.calibration))
    into(
        moments,
        "inputs",
        partial(each_block, blocks=needs.blocks, pooled=True, every=needs.all_experts),
        windows.calibration,
    )
    into(held_out, "held-out", each_block, windows.held_out, spent)
    found = EndMoments.load(pieces, decoder.device) if needs.ends and KEY in pieces else None
    return Evidence(windows, moments, held_out, found)
