"""Estimates of a run's memory, disk and time, from the model's shapes and this machine's speed."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from slimrank.calibrate.needs import Work
from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate import count_parameters
from slimrank.evaluate.predictions import logits_bytes
from slimrank.forms.linear import shape_of
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.recipe import Recipe
from slimrank.run.pace import Pace
from slimrank.run.sizes import part_bytes, shares_of, stacked, stacks_of
from slimrank.run.space import Space, Step, largest, resident
from slimrank.runtime.memory import Limits
from slimrank.texts.windows import Windows


@dataclass(frozen=True)
class Estimate:
    """Bytes of host memory, bytes of disk beside the output, and seconds, each meant to be right within 1.5 times.

    memory: without the pages of mapped files, which the system may take back; these are `pages`. largest: what needs
    the most memory, as the subject of a sentence; touched: the share of the whole model's parameters that is in the
    linears to compress; device: bytes of the device's memory, None without one.
    """

    memory: int
    disk: int
    seconds: float
    largest: str = "the largest block and its moments"
    touched: float = 0.0
    pages: int = 0
    device: int | None = None

    def check(self, limits: Limits, folder: Path, asked: bool, kept: int = 0) -> None:
        """Compare with the limits; asked: the limit was given as --memory; kept: bytes of progress already on disk.

        Raises:
            UsageError: if --memory is too little.
            SlimrankError: if the free disk or memory is too little.
        """
        free = shutil.disk_usage(next(path for path in (folder, *folder.resolve().parents) if path.is_dir())).free
        if self.disk - kept > free:
            raise SlimrankError(
                f"The run needs about {gib(self.disk - kept)} of disk for progress in {folder}, which has {gib(free)} "
                "free: free some or name an --out on another disk."
            )
        if self.memory > limits.host:
            kind = UsageError if asked else SlimrankError
            given = f"--memory {gib(limits.host)} is" if asked else f"The free memory, {gib(limits.host)}, is"
            raise kind(
                f"{given} too little: about {gib(self.memory)} is needed, most of it for {self.largest}; "
                "compute in --dtype bfloat16, use a --window of fewer tokens or a larger machine."
            )


def gib(size: float) -> str:
    """Bytes as text in GiB, or in MiB where they are few."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def estimate(
    model: Compressible, windows: Windows, recipe: Recipe, keep: float = 1.0, stored: torch.dtype | None = None
) -> Estimate:
    """The estimate for compressing these linears with these windows, some operations being timed for it.

    keep: the share of the linears that stays; stored: the dtype of the checkpoint that is written, None for none.
    Memory: what the process holds already, with the step that holds most (see Space), on a device what is there.
    """
    decoder = model.decoder
    pace = Pace.of(model, windows.calibration)
    space = Space(model, windows, recipe, keep, stored)
    total, own = resident()
    base, steps = own - in_host(decoder), list(space.steps())
    size, what = largest(steps, decoder, pages=False)
    pages = total - own + largest(steps, decoder, pages=True)[0] - size
    touched = sum(unit.parameters for unit in model.units.values()) / count_parameters(decoder.model)
    seconds = _seconds(model, windows, recipe, pace)
    if decoder.device.type == "cuda":
        there = torch.cuda.memory_allocated(decoder.device) - decoder.weights.held
        return Estimate(own + space.beside_device, space.disk(), seconds, what, touched, total - own, there + size)
    return Estimate(base + size, space.disk(), seconds, what, touched, pages)


def in_host(decoder: Decoder) -> int:
    """Bytes of the model's parts in host memory."""
    return decoder.weights.held if decoder.device.type == "cpu" else 0


def _seconds(model: Compressible, windows: Windows, recipe: Recipe, pace: Pace) -> float:
    """Seconds of the passes over the windows, the Gram sums and the decompositions."""
    world, needs = model.decoder.world, recipe.needs
    flat = [shape_of(module) for module in model.linears.values()]
    stacks = [shapes for block in model.blocks for shapes in stacks_of(block)] if recipe.form.stacks else []
    read, held_out = windows.calibration.numel(), windows.held_out.numel()
    steps = [Work(read), Work(held_out), Work(held_out, blocks=2, head=2)]  # calibration, and the judge at the end
    shares = shares_of(model, recipe)
    reading = [(shares[name], *shape_of(linear)) for name, linear in model.linears.items()]
    grams = (read + held_out) * sum(share * n * n for share, _, n in reading) / 2
    if needs.gradients:
        tokens = needs.gradient_windows(windows.calibration).numel()
        steps.append(Work(tokens, blocks=4, head=3))
        grams += tokens * sum(share * m * m for share, m, _ in reading) / 2
    steps += [recipe.allocate.work(windows, len(flat)), *(refiner.work(windows) for refiner in recipe.refine)]
    passes = sum(one.tokens * (one.blocks * len(model.blocks) * pace.block + one.head * pace.head) for one in steps)
    once = sum(map(pace.decomposing, flat))
    stacked_once = sum(pace.decomposing(stacked(shapes)) for shapes in stacks)
    if recipe.form.shared:  # of each expert, products and a Cholesky factor of about that cost
        stacked_once += sum(pace.decomposing(unit.shape) for unit in model.units.values() if unit.mixture)
    times = 1 + sum(one.decompositions for one in steps) + (not recipe.rebuilds)
    return (passes + grams * pace.product + once * times + stacked_once) / world.size


def evaluation(decoder: Decoder, window: int) -> Estimate:
    """The estimate of evaluating texts in windows of `window` tokens, a block at a time; seconds are not counted."""
    sizes, vocabulary = part_bytes(decoder), decoder.model.config.get_text_config().vocab_size
    block = max(size for part, size in sizes.items() if part is not None)
    total, own = resident()
    steps = [Step("the largest block", block, 0), Step("the logits", sizes[None], logits_bytes(window, vocabulary))]
    memory = own - in_host(decoder) + largest(steps, decoder, pages=False)[0]
    return Estimate(memory, 0, 0.0, "the logits of the evaluation", pages=total - own)


Announce = Callable[[Estimate], None]


def silent(estimate: Estimate) -> None:
    """Announce nothing."""
