"""Training loops of refiners: the parameters, the teacher, the optimisers and the best state."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.errors import SlimrankError
from slimrank.forms import Form
from slimrank.model.compressible import Compressible
from slimrank.runtime.world import ALONE, World


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the compressed layers, and all vectors (norms and biases)."""
    factors = {id(p) for form in model.modules() if isinstance(form, Form) for p in form.parameters()}
    return [p for p in model.parameters() if id(p) in factors or p.ndim == 1]


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike. lr: the highest rate that they get; orthogonal: by Muon, else by AdamW."""

    parameters: Sequence[Tensor]
    lr: float
    orthogonal: bool = False


def teacher_of(compressible: Compressible, softened: float = 0.0) -> PreTrainedModel:
    """A copy of the dense model that shares its matrices and has norms and biases of its own.

    softened: interpolates the vectors outside the blocks from the dense (0) to the compressed model's (1), and with the
    last norm the temperature.
    """
    model, weights = compressible.decoder.model, compressible.decoder.weights
    ours = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 1 and weights.part_of(name) is None}
    with compressible.as_dense():
        shared = {id(parameter): parameter for parameter in model.parameters() if parameter.ndim > 1}
        teacher = copy.deepcopy(model, shared).eval()
    for name, parameter in ours.items():
        teacher.get_parameter(name).data.lerp_(parameter, softened)
    return teacher


LOSS_SCALE = 1024.0  # a power of two, so that float16 gradients do not underflow


class Descent:
    """Muon on matrices and AdamW on the rest, with warm-up and cosine decay over `steps`.

    Muon's steps are scaled to AdamW's size. Gradients are clipped to norm 1. Parameters below float32 are updated
    through float32 `masters`. what: the refiner's name, for errors; world: the processes over which gradients are
    summed.
    """

    def __init__(self, groups: Sequence[Group], *, steps: int, what: str, world: World = ALONE) -> None:
        self.what, self.world = what, world
        self.parameters, self.masters = list[Tensor](), list[Tensor]()
        chosen: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for group in groups:
            masters = [p if p.dtype == torch.float32 else p.detach().float() for p in group.parameters]
            self.parameters += group.parameters
            self.masters += masters
            if masters:
                chosen[group.orthogonal].append({"params": masters, "lr": group.lr})
        self.optimizers: list[torch.optim.Optimizer] = []
        if chosen[True]:
            muon = torch.optim.Muon(chosen[True], weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append(muon)
        if chosen[False]:
            self.optimizers.append(torch.optim.AdamW(chosen[False], betas=(0.9, 0.95), weight_decay=0.0))
        warmup = max(1, steps // 20)

        def scale(step: int) -> float:
            return min((step + 1) / warmup, cosine(step, steps))

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, scale) for optimizer in self.optimizers]

    def step(self, losses: Iterable[Tensor]) -> None:
        """One step on the sum of `losses`, computed one after another; raises a SlimrankError if it is not finite."""
        for parameter in self.parameters:
            parameter.grad = None
        total = 0.0
        for loss in losses:
            total += loss.item()
            (loss * LOSS_SCALE).backward()
        if not math.isfinite(self.world.total(total)):
            raise SlimrankError(f"The loss of refine.{self.what} became NaN or Inf: lower its lr.")
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float().div_(LOSS_SCALE)
        gradients = [master.grad for master in self.masters if master.grad is not None]
        self.world.add_up(*gradients)
        if not nn.utils.clip_grad_norm_(self.masters, 1.0).isfinite():
            raise SlimrankError(f"A gradient of refine.{self.what} became NaN or Inf: lower its lr.")
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Copy the masters into the parameters, rounded."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)


def cosine(step: int, steps: int) -> float:
    """Cosine decay: (1 + cos(pi step / steps)) / 2."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


class Best:
    """The parameters at the smallest held-out loss seen."""

    def __init__(self, parameters: Sequence[Tensor], loss: float) -> None:
        self.parameters, self.loss, self.step = parameters, math.inf, 0
        self.offer(loss, 0)

    def offer(self, loss: float, step: int) -> None:
        """Keep the parameters if the loss is the smallest yet."""
        if loss < self.loss:
            self.loss, self.step = loss, step
            self.state = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the best values back into the parameters."""
        for parameter, value in zip(self.parameters, self.state, strict=True):
            parameter.copy_(value)


@contextmanager
def training(parameters: Sequence[Tensor], model: nn.Module) -> Iterator[None]:
    """Inside, only these parameters have gradients; every requires_grad is restored afterwards."""
    before = [(p, p.requires_grad) for p in {*model.parameters(), *parameters}]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
            parameter.grad = None
