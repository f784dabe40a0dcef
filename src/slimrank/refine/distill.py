"""End-to-end distillation: the compressed model's next-token distribution is drawn to the dense model's."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from slimrank.numerics.losses import divergence
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.restart import go_on, keep
from slimrank.refine.training import Best, Descent, cosine, teacher_of, trainable, training
from slimrank.runtime.world import ALONE, World
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run

STATE = "distill/state"
CPU_LOGITS, DEVICE_LOGITS = 2**26, 2**28  # numbers at a time, of several copies


class Distill(Refiner):
    """Descent on KL(dense || compressed) over fresh windows of the calibration text.

    tokens: how many are read at most; batch: tokens a step, in whole windows, at least one for every process; lr: of
    the matrices, see lr_for; vector_lr: of norms and biases, which so few numbers hold that they bear a larger one;
    checks: how often the held-out windows are asked, whose best state is the one that stays. softened: how far the
    target goes toward the temperature that the compressed model's head was given, since of text that it knows by heart
    the dense model is surer than is good for other text. states: the weight of `states_error` at first, which fades
    like the lr. After a kill it goes on from the last check. Of several processes each takes its share of every step's
    windows.
    """

    name: Literal["distill"] = "distill"
    trains: ClassVar[bool] = True

    tokens: Annotated[int, Field(ge=1)] = 400_000
    batch: Annotated[int, Field(ge=1)] = 8192
    lr: Annotated[float, Field(gt=0)] | None = None
    vector_lr: Annotated[float, Field(gt=0)] = 0.001
    softened: Annotated[float, Field(ge=0, le=1)] = 0.5
    states: Annotated[float, Field(ge=0)] = 3.0
    checks: Annotated[int, Field(ge=1)] = 10

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Train the factors, norms and biases; notes the tokens read and the held-out divergence before and after."""
        teacher, window = teacher_of(spectra.model, self.softened), spectra.evidence.windows.calibration.shape[1]
        batch = max(-(-self.batch // window), spectra.model.decoder.world.size)
        steps = max(1, self.tokens // (batch * window))
        before, best = self._descend(spectra, teacher, steps, batch, run)
        run.pieces.drop(STATE)
        return [
            f"Distillation read {steps * batch * window:,} tokens and took the held-out divergence from "
            f"{before:.4f} to {best.loss:.4f} nats a token (best at step {best.step} of {steps})."
        ]

    def _descend(
        self, spectra: Spectra, teacher: PreTrainedModel, steps: int, batch: int, run: Run
    ) -> tuple[float, Best]:
        """The held-out divergence before, and the best state, which the model is in afterwards."""
        decoder, windows = spectra.model.decoder, spectra.evidence.windows
        student, world, device = decoder.model, decoder.world, decoder.device
        parameters = trainable([student])
        held_out = windows.held_out.to(device)
        before = held_out_divergence(student, teacher, held_out, world)
        best = Best(parameters, before)
        lr = self.lr or lr_for(before, decoder.width)
        descent = Descent(parameters, lr=lr, vector_lr=self.vector_lr, steps=steps, what=self.name, world=world)
        fresh = windows.more(steps * batch, windows.record["seed"] + 1).split(batch)
        every = max(1, steps // self.checks)
        done = go_on(run.pieces, STATE, descent, best)
        for step, ids in enumerate(run.track(fresh, "distilling", steps), start=1):
            if step <= done:
                continue
            mine = world.share(ids).to(device)
            with training(parameters, student):
                descent.step(self._losses(student, teacher, mine, cosine(step, steps), len(ids)))
            if step % every == 0 or step == steps:
                best.offer(held_out_divergence(student, teacher, held_out, world), step)
                keep(run.pieces, STATE, descent, best, step)
        best.restore()
        return before, best

    def _losses(
        self, student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, fading: float, batch: int
    ) -> Iterator[Tensor]:
        """The parts of the loss over a batch of so many windows, some of this process's at a time."""
        numbers = ids.shape[1] * student.config.get_text_config().vocab_size
        for some in ids.split(max(1, (CPU_LOGITS if ids.device.type == "cpu" else DEVICE_LOGITS) // numbers)):
            yield self._loss(student, teacher, some, fading) * (len(some) / batch)

    def _loss(self, student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, fading: float) -> Tensor:
        """KL(dense || compressed) in nats a token, and the states' error; fading: from 1 to 0 over the descent."""
        asked = {"input_ids": ids, "use_cache": False, "output_hidden_states": self.states > 0}
        with torch.no_grad():
            dense = teacher(**asked)
        ours = student(**asked)
        loss = divergence(ours.logits, dense.logits)
        if self.states:
            loss = loss + self.states * fading * states_error(ours.hidden_states, dense.hidden_states)
        return loss


def lr_for(divergence: float, width: int) -> float:
    """0.01 sqrt(KL / width), with the held-out KL before the first step.

    A loss that is quadratic in the weights lies as far from its minimum as its root says, and an orthogonal step of one
    lr moves a linear's outputs by the root of its width.
    """
    return 0.01 * (max(divergence, 0.0) / width) ** 0.5


def states_error(ours: Sequence[Tensor], dense: Sequence[Tensor]) -> Tensor:
    """|h^ - h|^2 / |h|^2 of the hidden states between the blocks, its mean over tokens and blocks.

    ours, dense: (batch, tokens, width) before the first block, behind each, and of the last behind the norm too.
    """
    between = list(zip(ours[1:-1], dense[1:-1], strict=True))
    errors = [(a.float() - b.float()).square().sum(-1) / b.float().square().sum(-1) for a, b in between]
    return torch.stack(errors).mean() if errors else dense[0].new_zeros(())


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """(batch, tokens, vocabulary)."""
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def held_out_divergence(student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, world: World = ALONE) -> float:
    """KL(teacher || student) over windows, in nats a token."""
    chunks = world.share(ids).split(8)
    values = [divergence(logits(student, chunk), logits(teacher, chunk)).item() * len(chunk) for chunk in chunks]
    return world.total(sum(values)) / len(ids)
