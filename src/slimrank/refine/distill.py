"""End-to-end distillation: the compressed model's next-token distribution is drawn to the dense model's."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from slimrank.allocate import Ranks
from slimrank.distributed import ALONE, World
from slimrank.refine.base import Refiner
from slimrank.refine.restart import go_on, keep
from slimrank.refine.training import Best, Descent, divergence, teacher_of, trainable, training
from slimrank.refine.whitened import whitened
from slimrank.session import Session

STATE = "distill/state"


class Distill(Refiner):
    """Descent on KL(dense || compressed) over fresh windows of the calibration text.

    tokens: how many are read at most; batch: windows a step; lr: 0.015 sqrt(KL / width) by default, with the held-out
    KL before the first step; checks: how often the held-out windows are asked, whose best state is the one that stays.
    softened: the target has the temperature that the compressed model's head was given, since of text that it knows by
    heart the dense model is surer than is good for other text. whiten: by how many calibration windows the factors'
    coordinates are made white, 0 for none, at the price of two square matrices a factor. After a kill it goes on from
    the last check. Of several processes each takes its share of every step's windows.
    """

    name: Literal["distill"] = "distill"
    trains: ClassVar[bool] = True

    tokens: Annotated[int, Field(ge=1)] = 2_000_000
    batch: Annotated[int, Field(ge=1)] = 8
    lr: Annotated[float, Field(gt=0)] | None = None
    softened: bool = True
    whiten: Annotated[int, Field(ge=0)] = 64
    checks: Annotated[int, Field(ge=1)] = 10

    def refine(self, session: Session, ranks: Ranks) -> list[str]:
        """Train the factors, norms and biases; notes the tokens read and the held-out divergence before and after."""
        teacher, window = teacher_of(session, self.softened), session.windows.calibration.shape[1]
        steps = max(1, self.tokens // (self.batch * window))
        with whitened(session, self.whiten):
            before, best = self._descend(session, teacher, steps)
        session.pieces.drop(STATE)
        return [
            f"Distillation read {steps * self.batch * window:,} tokens and took the held-out divergence from "
            f"{before:.4f} to {best.loss:.4f} nats a token (best at step {best.step} of {steps})."
        ]

    def _descend(self, session: Session, teacher: PreTrainedModel, steps: int) -> tuple[float, Best]:
        """The held-out divergence before, and the best state, which the model is in afterwards."""
        student, world, device = session.decoder.model, session.world, session.decoder.device
        parameters = trainable([student])
        held_out = session.windows.held_out.to(device)
        before = held_out_divergence(student, teacher, held_out, world)
        best = Best(parameters, before)
        descent = Descent(parameters, lr=self.lr or lr_for(before, session), steps=steps, what=self.name, world=world)
        fresh = session.windows.more(steps * self.batch, session.windows.record["seed"] + 1).split(self.batch)
        every = max(1, steps // self.checks)
        done = go_on(session.pieces, STATE, descent, best)
        for step, ids in enumerate(session.track(fresh, "distilling", steps), start=1):
            if step <= done:
                continue
            mine = world.share(ids).to(device)
            with torch.no_grad():
                target = logits(teacher, mine)
            with training(parameters, student):
                descent.step(divergence(logits(student, mine), target) * (len(mine) / len(ids)))
            if step % every == 0 or step == steps:
                best.offer(held_out_divergence(student, teacher, held_out, world), step)
                keep(session.pieces, STATE, descent, best, step)
        best.restore()
        return before, best


def lr_for(divergence: float, session: Session) -> float:
    """0.015 sqrt(KL / width): a loss that is quadratic in the weights lies as far from its minimum as its root says.

    In white coordinates an orthogonal step of one lr moves a linear's outputs by the root of its width.
    """
    return 0.015 * (max(divergence, 0.0) / session.decoder.width) ** 0.5


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """(batch, tokens, vocabulary)."""
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def held_out_divergence(student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, world: World = ALONE) -> float:
    """KL(teacher || student) over windows, in nats a token."""
    chunks = world.share(ids).split(8)
    values = [divergence(logits(student, chunk), logits(teacher, chunk)).item() * len(chunk) for chunk in chunks]
    return world.total(sum(values)) / len(ids)
