"""Estimates of a run's memory, disk and time, from the model's shapes and this machine's speed."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from slimrank.calibrate.needs import Work
from slimrank.calibrate.stream import CPU_LOGITS, default_batch
from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate import count_parameters
from slimrank.evaluate.predictions import logits_bytes
from slimrank.forms.experts import unfolded
from slimrank.forms.linear import shape_of
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.numerics.threads import at_once
from slimrank.recipe import Recipe
from slimrank.refine import Refiner
from slimrank.run.pace import Pace
from slimrank.runtime.memory import Limits
from slimrank.store.weights import Part
from slimrank.texts.windows import Windows

LIBRARIES = 310 * 2**20  # bytes of an idle process that has read the model's config
LOGITS = 6 * 4 * CPU_LOGITS  # bytes of logits with their gradients
TRAINED = 3 * 4  # bytes that training adds for each parameter, float32 in any dtype


@dataclass(frozen=True)
class Estimate:
    """Bytes of host memory, bytes of disk beside the output, and seconds, each within a factor of about two.

    largest: what needs the most memory, as the subject of a sentence; touched: the share of the whole model's
    parameters that is in the linears to compress.
    """

    memory: int
    disk: int
    seconds: float
    largest: str = "the largest block and its moments"
    touched: float = 0.0

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
                f"{given} too little: {self.largest} need about {gib(self.memory)}; "
                "compute in --dtype bfloat16, use a --window of fewer tokens or a larger machine."
            )


def gib(size: float) -> str:
    """Bytes as text in GiB."""
    return f"{size / 2**30:.1f} GiB"


def estimate(model: Compressible, windows: Windows, recipe: Recipe) -> Estimate:
    """The estimate for compressing these linears with these windows, some operations being timed for it.

    Memory: the libraries plus the largest step, see `_memory`, or the whole model where a refiner or the allocator runs
    it. Disk: half of each Gram in float32, and the larger of the held-out Grams and the finished blocks with their
    bases.
    """
    decoder, dtype = model.decoder, next(model.decoder.model.parameters()).dtype
    sizes = _part_bytes(decoder)
    memory = LIBRARIES + _memory(model, decoder.world.share(windows.calibration), recipe, sizes, dtype)
    pace = Pace.of(model, windows.calibration)
    disk, seconds = _disk(model, recipe, sizes), _seconds(model, windows, recipe, pace)
    total = _whole_bytes(sum(sizes.values()), dtype.itemsize, recipe.refine, recipe.allocate.measures)
    touched = sum(unit.parameters for unit in model.units.values()) / count_parameters(decoder.model)
    if total > memory:
        largest = "the allocator or the refiners that run the whole model"
        return Estimate(total, disk, seconds, largest, touched=touched)
    return Estimate(memory, disk, seconds, touched=touched)


def _memory(
    model: Compressible, windows: torch.Tensor, recipe: Recipe, sizes: dict[Part, int], dtype: torch.dtype
) -> int:
    """Bytes of the largest step: embeddings and head with logits, a block with its Grams, or one with its factors."""
    gradients, decoder = recipe.needs.gradients, model.decoder
    shapes = [[shape_of(module) for module in block.values()] for block in model.blocks if block]
    stacks = [shapes for block in model.blocks for shapes in stacks_of(block)] if recipe.form.stacks else []
    block = max(size for part, size in sizes.items() if part is not None)
    in_flight = default_batch(decoder, windows.shape[1]) * windows.shape[1]
    sums = max(6 * sum(m * m if gradients else n * n for m, n in block) for block in shapes)
    shares = shares_of(model, recipe)
    widths = (sum(shares[name] * sum(shape_of(linear)) for name, linear in block.items()) for block in model.blocks)
    activations = int(in_flight * max(widths) * dtype.itemsize)
    flat = {shape for block in shapes for shape in block}
    solving = {shape: 8 * (2 * max(shape) ** 2 + 2 * m_n(shape) + 2 * min(shape) ** 2) for shape in flat}
    solving |= {
        stacked(unit): 8 * (max(m * m for m, _ in unit) + 2 * m_n(stacked(unit)) + 2 * unit[0][1] ** 2)
        for unit in stacks
    }
    most = max(at_once(shape, decoder.device) * size for shape, size in solving.items())
    copies = 2 if _in_blocks(recipe) else 1
    return max(sizes[None] + LOGITS, block + sums + activations, copies * block + most)


def _disk(model: Compressible, recipe: Recipe, sizes: dict[Part, int]) -> int:
    """Bytes of the Grams, and of the finished blocks with the bases they are cut from."""
    flat = [shape_of(module) for module in model.linears.values()]
    inputs = 2 * sum(n * n for _, n in flat)
    outputs = sum(2 * m * m for m, _ in flat) if recipe.needs.gradients else 0
    bases = recipe.cuts_later and recipe.route == "projector"
    basis_bytes = sum(8 * min(shape) ** 2 for shape in flat) if bases else 0
    return outputs + inputs + max(inputs, sum(sizes.values()) + basis_bytes)


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
    times = 1 + sum(one.decompositions for one in steps) + (not recipe.rebuilds)
    return (passes + grams * pace.product + once * times + stacked_once) / world.size


def shares_of(model: Compressible, recipe: Recipe) -> dict[str, float]:
    """Of all tokens, the share that reaches each linear: 1, but for an expert what the router sent it when tried."""
    experts = {} if recipe.experts == "all" else unfolded(model.decoder.model)
    return {name: experts[unit.mixture].share if unit.mixture in experts else 1.0 for name, unit in model.units.items()}


def _in_blocks(recipe: Recipe) -> bool:
    """Whether a refiner works block by block."""
    return any(not refiner.whole_model for refiner in recipe.refine)


def evaluation(decoder: Decoder, window: int) -> Estimate:
    """The estimate of evaluating texts in windows of `window` tokens, a block at a time; seconds are not counted."""
    sizes, vocabulary = _part_bytes(decoder), decoder.model.config.get_text_config().vocab_size
    block = max(size for part, size in sizes.items() if part is not None)
    memory = LIBRARIES + max(block, sizes[None] + logits_bytes(window, vocabulary))
    return Estimate(memory, 0, 0.0, "the logits of the evaluation")


def stacks_of(block: dict[str, nn.Module]) -> list[list[tuple[int, int]]]:
    """Shapes of a block's linears that have one parent module and input width, and so may share their input."""
    groups: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for name, module in block.items():
        shape = shape_of(module)
        groups.setdefault((name.rpartition(".")[0], shape[1]), []).append(shape)
    return [shapes for shapes in groups.values() if len(shapes) > 1]


def stacked(shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The shape of the stacked matrices."""
    return sum(rows for rows, _ in shapes), shapes[0][1]


def _whole_bytes(model: int, itemsize: int, refine: Sequence[Refiner], whole: bool) -> int:
    """Bytes of the whole model in memory, with what training adds; 0 if no step needs it."""
    needing = [refiner for refiner in refine if refiner.whole_model]
    if not needing and not whole:
        return 0
    return LIBRARIES + model + any(refiner.trains for refiner in needing) * (model // itemsize * TRAINED)


def m_n(shape: tuple[int, int]) -> int:
    """Elements of a matrix."""
    return shape[0] * shape[1]


def _part_bytes(decoder: Decoder) -> dict[Part, int]:
    sizes: dict[Part, int] = dict.fromkeys(decoder.weights.parts, 0)
    for name, parameter in decoder.model.named_parameters():
        sizes[decoder.weights.part_of(name)] += parameter.nbytes
    return sizes


Announce = Callable[[Estimate], None]


def silent(estimate: Estimate) -> None:
    """Announce nothing."""
