"""What the refiners that descend on weights share: parameters, learning rate, the best state so far."""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.errors import SlimrankError
from slimrank.forms import Form
from slimrank.model.compressible import Compressible
from slimrank.runtime.world import ALONE, World


def trainable(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of the factors, and of everything else that is a vector: norms and biases."""
    found: dict[int, nn.Parameter] = {}
    for module in modules:
        factors = {id(p) for form in module.modules() if isinstance(form, Form) for p in form.parameters()}
        found |= {id(p): p for p in module.parameters() if id(p) in factors or p.ndim == 1}
    return list(found.values())


def teacher_of(compressible: Compressible, softened: float = 0.0) -> PreTrainedModel:
    """The dense model, which shares its matrices with the compressed one, but nothing that a refiner trains.

    softened: how far the vectors outside the blocks are on their way to what they are now, and with them the head on
    its way to the temperature that it was given.
    """
    model, weights = compressible.decoder.model, compressible.decoder.weights
    ours = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 1 and weights.part_of(name) is None}
    with compressible.as_dense():
        shared = {id(parameter): parameter for parameter in model.parameters() if parameter.ndim > 1}
        teacher = copy.deepcopy(model, shared).eval()
    for name, parameter in ours.items():
        teacher.get_parameter(name).data.lerp_(parameter, softened)
    return teacher


LOUDER = 1024.0  # the loss times this, a power of two, keeps float16's gradients above its smallest number


class Descent:
    """Muon on the matrices and AdamW on the vectors, with warm-up and cosine decay over `steps`.

    Muon's steps are scaled to the size of AdamW's, so that one lr serves both; vector_lr: another one for the vectors.
    Gradients are clipped to norm 1.
    Parameters of less than float32, whose rounding would swallow small steps, follow float32 `masters` that take them.
    world: the processes whose losses are parts of one sum.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        *,
        lr: float,
        steps: int,
        what: str,
        vector_lr: float | None = None,
        world: World = ALONE,
    ) -> None:
        self.parameters, self.what, self.world = parameters, what, world
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in parameters]
        matrices = [p for p in self.masters if p.ndim == 2]
        vectors = [p for p in self.masters if p.ndim != 2]
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append(muon)
        if vectors:
            self.optimizers.append(torch.optim.AdamW(vectors, lr=vector_lr or lr, betas=(0.9, 0.95), weight_decay=0.0))
        warmup = max(1, steps // 20)

        def scale(step: int) -> float:
            return min((step + 1) / warmup, cosine(step, steps))

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, scale) for optimizer in self.optimizers]

    def step(self, losses: Iterable[Tensor]) -> None:
        """One step down the sum of `losses`, each asked for after the one before; a SlimrankError if not finite."""
        for parameter in self.parameters:
            parameter.grad = None
        total = 0.0
        for loss in losses:
            total += loss.item()
            (loss * LOUDER).backward()
        if not math.isfinite(self.world.total(total)):
            raise SlimrankError(f"The loss of refine.{self.what} became NaN or Inf: lower its lr.")
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float().div_(LOUDER)
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
        """Round the masters into the parameters."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)


def cosine(step: int, steps: int) -> float:
    """From 1 before the first step to 0 behind the last."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


class Best:
    """The parameters at the smallest held-out loss seen."""

    def __init__(self, parameters: list[nn.Parameter], loss: float) -> None:
        self.parameters, self.loss, self.step = parameters, math.inf, 0
        self.offer(loss, 0)

    def offer(self, loss: float, step: int) -> None:
        """Keep the parameters if the loss is the smallest yet."""
        if loss < self.loss:
            self.loss, self.step = loss, step
            self.state = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for parameter, value in zip(self.parameters, self.state, strict=True):
            parameter.copy_(value)


@contextmanager
def training(parameters: list[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """Gradients for these parameters alone, and every flag as it was afterwards."""
    before = [(p, p.requires_grad) for p in model.parameters()]
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
