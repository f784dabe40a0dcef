"""End-to-end distillation: minimises KL(dense || compressed) of the next-token distributions."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from slimrank.calibrate.needs import Holds, Work
from slimrank.model.decoder import Decoder
from slimrank.numerics.losses import divergence
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.restart import resume_training, save_training
from slimrank.refine.training import Best, Descent, Group, cosine, teacher_of, trainable, training
from slimrank.runtime.world import ALONE, World
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.windows import Windows

CPU_LOGITS, DEVICE_LOGITS = 2**26, 2**28  # logits in a forward pass; several copies of them are held


class Distill(Refiner):
    """Gradient descent on KL(dense || compressed) over fresh windows of the calibration text.

    tokens: the most that are read; batch: tokens in a step, in whole windows, at least one for each process; lr: of the
    matrices, by default `lr_for`; vector_lr: of norms and biases; checks: evaluations on the held-out windows, the best
    of which gives the final parameters. softened: from 0 (the dense model's own last norm) to 1 (the compressed
    model's, with its temperature) in the teacher, since the dense model is overconfident on text that it has
    memorised. states: the initial weight of `states_error`, which decays like the lr. A killed run resumes at the last
    check. Each process takes its share of every step's windows.
    """

    name: Literal["distill"] = "distill"
    trains: ClassVar[bool] = True
    needs_floats: ClassVar[bool] = True
    doing: ClassVar[str] = "distillation"

    tokens: Annotated[int, Field(ge=1)] = 400_000
    batch: Annotated[int, Field(ge=1)] = 8192
    lr: Annotated[float, Field(gt=0)] | None = None
    vector_lr: Annotated[float, Field(gt=0)] = 0.001
    softened: Annotated[float, Field(ge=0, le=1)] = 0.5
    states: Annotated[float, Field(ge=0)] = 3.0
    checks: Annotated[int, Field(ge=1)] = 10

    def work(self, windows: Windows) -> Work:
        """The teacher, and the student's pass forward and back; both on the held-out windows at every check."""
        return Work(self.tokens + self.checks * windows.held_out.numel() / 2, blocks=4, head=5)

    def holds(self, windows: Windows) -> Holds:
        """The states of every block of teacher and student in a forward pass, and several copies of its logits."""
        return Holds(self.batch, states=2, every_block=True, logits=(6 * CPU_LOGITS, 6 * DEVICE_LOGITS))

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Train the factors, norms and biases; returns a note with the held-out KL before and after."""
        teacher, window = teacher_of(spectra.model, self.softened), spectra.evidence.windows.calibration.shape[1]
        batch = max(-(-self.batch // window), spectra.model.decoder.world.size)
        steps = max(1, self.tokens // (batch * window))
        before, best = self._descend(spectra, teacher, steps, batch, run)
        run.pieces.drop(self.state)
        return [
            f"Held-out KL {before:.4f} -> {best.loss:.4f} nats per token by {self.doing} on "
            f"{steps * batch * window:,} tokens (best at step {best.step} of {steps})."
        ]

    @property
    def state(self) -> str:
        """The key of the training's state among a run's pieces."""
        return f"{self.name}/state"

    def groups(self, decoder: Decoder, divergence: float) -> list[Group]:
        """What is trained, and how; divergence: the held-out KL before, in nats per token."""
        parameters = trainable(decoder.model)
        matrices, rest = ([p for p in parameters if (p.ndim == 2) is is_matrix] for is_matrix in (True, False))
        lr = self.lr or lr_for(divergence, decoder.width)
        return [Group(matrices, lr, orthogonal=True), Group(rest, self.vector_lr)]

    def _descend(
        self, spectra: Spectra, teacher: PreTrainedModel, steps: int, batch: int, run: Run
    ) -> tuple[float, Best]:
        """The held-out KL before, and the best state, which the model ends in."""
        decoder, windows = spectra.model.decoder, spectra.evidence.windows
        student, world, device = decoder.model, decoder.world, decoder.device
        held_out = windows.held_out.to(device)
        before = held_out_divergence(student, teacher, held_out, world)
        descent = Descent(self.groups(decoder, before), steps=steps, what=self.name, world=world)
        best = Best(descent.parameters, before)
        fresh = windows.more(steps * batch, windows.record["seed"] + 1).split(batch)
        every = max(1, steps // self.checks)
        done = resume_training(run.pieces, self.state, descent, best)
        for step, ids in enumerate(run.track(fresh, self.doing, steps), start=1):
            if step <= done:
                continue
            mine = world.share(ids).to(device)
            with training(descent.parameters, student):
                descent.step(self._losses(student, teacher, mine, cosine(step, steps), len(ids)))
            if step % every == 0 or step == steps:
                best.offer(held_out_divergence(student, teacher, held_out, world), step)
                save_training(run.pieces, self.state, descent, best, step)
        best.restore()
        return before, best

    def _losses(
        self, student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, fading: float, batch: int
    ) -> Iterator[Tensor]:
        """The loss of this process's windows, in parts whose sum over processes is the mean over `batch` windows."""
        numbers = ids.shape[1] * student.config.get_text_config().vocab_size
        for part in ids.split(max(1, (CPU_LOGITS if ids.device.type == "cpu" else DEVICE_LOGITS) // numbers)):
            yield self._loss(student, teacher, part, fading) * (len(part) / batch)

    def _loss(self, student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, fading: float) -> Tensor:
        """KL(dense || compressed) in nats per token, plus states * fading * states_error; fading goes from 1 to 0."""
        inputs = {"input_ids": ids, "use_cache": False, "output_hidden_states": self.states > 0}
        with torch.no_grad():
            dense = teacher(**inputs)
        ours = student(**inputs)
        loss = divergence(ours.logits, dense.logits)
        if self.states:
            loss = loss + self.states * fading * states_error(ours.hidden_states, dense.hidden_states)
        return loss


def lr_for(divergence: float, width: int) -> float:
    """0.01 sqrt(KL / width), with the held-out KL (nats per token) before the first step.

    The distance to the minimum of a quadratic loss grows as its root, and an orthogonal step of size lr moves the
    outputs of a linear by lr sqrt(width).
    """
    return 0.01 * (max(divergence, 0.0) / width) ** 0.5


def states_error(ours: Sequence[Tensor], dense: Sequence[Tensor]) -> Tensor:
    """The mean over tokens and blocks of |h^ - h|^2 / |h|^2, for the hidden states between the blocks.

    ours, dense: transformers' `hidden_states`, each (batch, tokens, width); the first and the last are left out.
    """
    between = list(zip(ours[1:-1], dense[1:-1], strict=True))
    errors = [(a.float() - b.float()).square().sum(-1) / b.float().square().sum(-1) for a, b in between]
    return torch.stack(errors).mean() if errors else dense[0].new_zeros(())


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The logits (batch, tokens, vocabulary) of ids (batch, tokens)."""
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def held_out_divergence(student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, world: World = ALONE) -> float:
    """KL(teacher || student) in nats per token over windows ids (windows, tokens)."""
    chunks = world.share(ids).split(8)
    values = [divergence(logits(student, chunk), logits(teacher, chunk)).item() * len(chunk) for chunk in chunks]
    return world.total(sum(values)) / len(ids)
