"""The memory and the disk that a run takes, counted from the tensors that its steps hold at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import psutil
import torch

from slimrank.calibrate.backward import sets_held
from slimrank.calibrate.needs import Holds
from slimrank.calibrate.stream import CPU_LOGITS, DEVICE_LOGITS, default_batch
from slimrank.forms.linear import shape_of
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.model.units import Shape
from slimrank.numerics.threads import at_once
from slimrank.recipe import Recipe
from slimrank.refine.pair import HELD
from slimrank.run.sizes import inputs_of, m_n, part_bytes, shares_of, stacked, stacks_of
from slimrank.store.weights import Part
from slimrank.texts.windows import Windows

LOGIT = 6 * 4  # bytes of a logit with its softmax, gradient and what samples from it
TRAINED = 3 * 4  # bytes that training adds for each parameter, float32 in any dtype
OUTPUTS = HELD * 3 // 2  # the most bytes of a block's outputs that refine.anchored holds


@dataclass(frozen=True)
class Step:
    """What a step holds, in bytes. weights: parts of the model that it needs at once; work: tensors of its own;
    pages: of mapped files that it reads; what: the subject of a sentence."""

    what: str
    weights: int
    work: int
    pages: int = 0


@dataclass(frozen=True)
class Space:
    """The sizes that the steps of a run follow from; keep: share of the linears that stays; stored: dtype written."""

    model: Compressible
    windows: Windows
    recipe: Recipe
    keep: float = 1.0
    stored: torch.dtype | None = None

    @property
    def decoder(self) -> Decoder:
        """The model as blocks."""
        return self.model.decoder

    @cached_property
    def parts(self) -> dict[Part, int]:
        """Bytes of every part of the model."""
        return part_bytes(self.decoder)

    @cached_property
    def whole(self) -> int:
        """Bytes of the model."""
        return sum(self.parts.values())

    @cached_property
    def itemsize(self) -> int:
        """Bytes of a number in the dtype of the computation."""
        return next(self.decoder.model.parameters()).dtype.itemsize

    @cached_property
    def shapes(self) -> list[list[Shape]]:
        """Shapes of the linears, by block that has any."""
        return [[shape_of(module) for module in block.values()] for block in self.model.blocks if block]

    @cached_property
    def outputs(self) -> float:
        """Numbers that a block's linears give for a token; an expert is sent some of the tokens alone."""
        shares = shares_of(self.model, self.recipe)
        return max(sum(shares[name] * shape_of(one)[0] for name, one in block.items()) for block in self.model.blocks)

    @property
    def block(self) -> int:
        """Bytes of the largest block."""
        return max(size for part, size in self.parts.items() if part is not None)

    @property
    def made(self) -> int:
        """Parameters of the compressed linears."""
        return round(self.keep * sum(m_n(shape) for block in self.shapes for shape in block))

    @property
    def logits(self) -> int:
        """Bytes of the logits that are in work at a time."""
        return LOGIT * (CPU_LOGITS if self.decoder.device.type == "cpu" else DEVICE_LOGITS)

    def states(self, tokens: int, sets: int = 1) -> int:
        """Bytes of hidden states in memory, the rest being in files."""
        room = self.decoder.states_room
        return min(tokens * self.decoder.width * self.itemsize * sets, max(room.host, room.device))

    def share(self, windows: torch.Tensor) -> int:
        """Tokens of this process's share of the windows."""
        return self.decoder.world.share(windows).numel()

    def steps(self) -> Iterator[Step]:
        """Every step of the run."""
        yield self.calibration()
        if self.recipe.needs.gradients:
            yield self.gradients()
        yield self.decompositions()
        yield from self.measurements()
        held_out = self.share(self.windows.held_out)
        yield Step("the logits of both models", self.parts[None], self.states(held_out, 2) + self.logits, self.cut)
        if self.stored is not None:
            yield self.trial(self.stored)

    def calibration(self) -> Step:
        """One block, the hidden states of all windows, those in work, and the Grams of what its linears read.

        A Gram is packed in half of a float64 matrix, while the previous block's is written in float32 from a copy.
        """
        in_work = round(self.batch * (self.outputs + 2 * self.decoder.width)) * self.itemsize
        grams = max(sum(8 * n * n for n in inputs_of(block)) for block in self.model.blocks if block)
        states = self.states(self.share(self.windows.calibration))
        return Step("the largest block and its moments", self.block, states + in_work + grams)

    def gradients(self) -> Step:
        """As calibration, with the states before several blocks, the graph of one, and a Gram for every output."""
        blocks = [block for block in self.model.blocks if block]
        graph = max(sum(shape_of(linear)[0] for linear in block.values()) + sum(inputs_of(block)) for block in blocks)
        grams = max(sum(8 * m * m for m, _ in block) for block in self.shapes)
        of_weights = max(sum(4 * m_n(shape) for shape in block) for block in self.shapes)
        tokens = self.share(self.recipe.needs.gradient_windows(self.windows.calibration))
        sets = sets_held(self.decoder, tokens * self.decoder.width * self.itemsize)
        states = self.states(tokens, sets + 1)
        back = states + 2 * self.batch * graph * self.itemsize + grams + of_weights * self.recipe.needs.of_weights
        if back + self.block > self.parts[None] + states + self.logits:
            return Step("the largest block and the gradients in it", self.block, back)
        return Step("the head and the gradients of its logits", self.parts[None], states + self.logits)

    def decompositions(self) -> Step:
        """A weight and its Grams in float64, for as many units as are worked on at a time; a block made of them."""
        blocks = [block for block in self.model.blocks if block]
        stacks = [one for block in blocks for one in stacks_of(block)] if self.recipe.form.stacks else []
        flat = {shape for block in self.shapes for shape in block}
        solving = {shape: 8 * (2 * max(shape) ** 2 + 2 * m_n(shape) + 2 * min(shape) ** 2) for shape in flat}
        solving |= {
            stacked(one): 8 * (max(m * m for m, _ in one) + 2 * m_n(stacked(one)) + 2 * one[0][1] ** 2)
            for one in stacks
        }
        most = max(at_once(shape, self.decoder.device) * size for shape, size in solving.items())
        most = max([most, *(8 * (6 * max(m, n) ** 2 + min(m, n) ** 2 + 3 * m * n) for m, n in self.sharing)])
        copies = 2 if any(not refiner.whole_model for refiner in self.recipe.refine) else 1
        return Step("the largest linear and its Grams", copies * self.block, most, self.bases)

    def measurements(self) -> Iterator[Step]:
        """The allocator, if it runs the model, and the refiners."""
        if self.recipe.allocate.measures:
            work = self.held(self.recipe.allocate.holds(self.windows))
            yield Step("the allocator that runs the whole model", self.whole, work, self.bases)
        for refiner in self.recipe.refine:
            held, solving = self.held(refiner.holds(self.windows)), self.decompositions().work * refiner.rebuilds
            trained = self.whole // self.itemsize * TRAINED * refiner.trains
            needed = self.whole if refiner.whole_model else 2 * self.block
            yield Step(f"refine.{refiner.name}", needed, held + solving + trained, self.cut)

    def held(self, holds: Holds) -> int:
        """Bytes of what a step says that it holds."""
        config, tokens = self.decoder.model.config.get_text_config(), holds.tokens // self.decoder.world.size
        outputs = self.outputs / self.decoder.width + 2
        states = holds.states + (len(self.decoder) + 1) * holds.every_block
        rows = tokens * config.vocab_size * holds.rows * 4
        logits = 4 * min(holds.logits[self.decoder.device.type != "cpu"], 6 * tokens * config.vocab_size)
        cached = min(self.states(tokens, round(1.5 * outputs)), OUTPUTS) * holds.outputs
        return self.states(tokens, states) + rows + cached + logits

    def trial(self, stored: torch.dtype) -> Step:
        """What was written, loaded once more; both models' files are mapped."""
        linears = sum(m_n(shape) for block in self.shapes for shape in block)
        outside = self.whole // self.itemsize - linears
        model = (outside + self.made) * self.itemsize
        second = min(model, self.decoder.weights.room)
        cast = self.made * stored.itemsize * (stored.itemsize != self.itemsize)
        pages = self.cut + cast + (outside + self.made) * stored.itemsize
        return Step("what was written, beside the model", self.whole, second, pages)

    @property
    def batch(self) -> int:
        """Tokens in work at a time."""
        window = self.windows.calibration.shape[1]
        return default_batch(self.decoder, window) * window

    @property
    def bases(self) -> int:
        """Bytes of the eigenvectors that units are cut from, on disk and read from there."""
        if not (self.recipe.cuts_later and self.recipe.route == "projector"):
            return 0
        return sum(8 * min(shape) ** 2 for block in self.shapes for shape in block)

    @property
    def sharing(self) -> list[Shape]:
        """Shapes of the experts' matrices, by block, if they may share a factor."""
        units = self.model.units.values() if self.recipe.form.shared else ()
        return [unit.shape for unit in units if unit.mixture]

    @property
    def directions(self) -> int:
        """Bytes of the shared factors' directions on disk, two matrices of float32 for each block with experts."""
        blocks = {unit.block for unit in self.model.units.values() if unit.mixture}
        return len(blocks) * 2 * 4 * max((max(shape) ** 2 for shape in self.sharing), default=0)

    @property
    def cut(self) -> int:
        """Bytes of the files that the compressed blocks are read from."""
        return self.bases + self.made * self.itemsize

    @property
    def beside_device(self) -> int:
        """Bytes of host memory beside a device's: two blocks on their way there, and the Grams that are written."""
        grams = max(sum(8 * (n * n + m * m) for m, n in block) for block in self.shapes)
        return 2 * self.block + grams

    def disk(self) -> int:
        """Bytes of the Grams, half of each in float32, and of the larger of the held-out ones and what is made."""
        flat = [shape for block in self.shapes for shape in block]
        inputs = 2 * sum(n * n for _, n in flat)
        outputs = sum(2 * m * m for m, _ in flat) if self.recipe.needs.gradients else 0
        return outputs + inputs + self.directions + max(inputs, self.whole + self.bases)


def largest(steps: Sequence[Step], decoder: Decoder, *, pages: bool) -> tuple[int, str]:
    """Bytes of the step that holds most, the model's parts in memory included, and the step's subject."""
    room = min(decoder.weights.room, sum(part_bytes(decoder).values()))
    sizes = [(max(room, step.weights) + step.work + pages * step.pages, step.what) for step in steps]
    return max(sizes)


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: all, and those that are no pages of mapped files."""
    info = psutil.Process().memory_info()
    return info.rss, info.rss - getattr(info, "shared", 0)
