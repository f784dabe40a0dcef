"""What calibration leaves: windows of tokens, and what they made of the dense model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from slimrank.calibrate.collect import each_block
from slimrank.calibrate.gradients import each_gradient
from slimrank.calibrate.moments import InputMoments, Moments, OutputMoments
from slimrank.calibrate.needs import Needs
from slimrank.calibrate.shelf import on_shelves, put_on_shelf, shelve
from slimrank.model.compressible import Compressible
from slimrank.store.run import Run
from slimrank.texts.windows import Windows

INPUTS = Needs()


@dataclass(frozen=True)
class Evidence:
    """moments: of the calibration windows; held_out: of the held-out ones, inputs alone."""

    windows: Windows
    moments: Moments
    held_out: Moments

    def input_of(self, linear: str) -> InputMoments:
        """What reached a linear on the calibration windows."""
        return self.moments.input_of(linear)

    def held_out_of(self, linear: str) -> InputMoments | None:
        """What reached a linear on the held-out windows; None where nothing did, or where it was dropped."""
        return self.held_out.inputs.get(self.moments.leader[linear])

    def output_of(self, linear: str) -> OutputMoments:
        """The gradients at a linear's output."""
        return self.moments.output_of(linear)


def calibrate(
    model: Compressible, windows: Windows, needs: Needs = INPUTS, run: Run | None = None, spent: Sequence[int] = ()
) -> Evidence:
    """Windows -> Evidence, block by block into the run's pieces.

    spent: blocks whose held-out moments are not needed any more.

    Raises:
        SlimrankError: naming the linear or block that a non-finite number reached.
    """
    run = run or Run()
    decoder, blocks, pieces = model.decoder, model.blocks, run.pieces
    moments, held_out = (on_shelves(pieces, decoder.device) for _ in range(2))

    def into(shelves: Moments, group: str, walk: Any, ids: Tensor, spent: Sequence[int] = ()) -> None:
        there = [index for index in range(len(blocks)) if f"{group}/{index}" in pieces]
        for index, found in walk(decoder, ids, blocks, done={*there, *spent}, track=run.track):
            shelve(found, pieces, f"{group}/{index}")
        for index in range(len(blocks)):
            if f"{group}/{index}" in pieces:
                put_on_shelf(shelves, pieces, f"{group}/{index}")

    if needs.gradients:
        seed = windows.record["seed"]
        walk = partial(each_gradient, labels=needs.labels, seed=seed, of_weights=needs.of_weights)
        into(moments, "gradients", walk, needs.gradient_windows(windows.calibration))
    into(moments, "inputs", partial(each_block, blocks=needs.blocks), windows.calibration)
    into(held_out, "held-out", each_block, windows.held_out, spent)
    return Evidence(windows, moments, held_out)
