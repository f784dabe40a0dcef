"""Training loops of refiners: the parameters, the teacher, the optimisers and the best state."""

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
    """The parameters of the compressed layers, and all vectors (norms and biases)."""
    parameters: dict[int, nn.Parameter] = {}
    for module in modules:
        factors = {id(p) for form in module.modules() if isinstance(form, Form) for p in form.parameters()}
        parameters |= {id(p): p for p in module.parameters() if id(p) in factors or p.ndim == 1}
    return list(parameters.values())


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
    """Muon on the matrices and AdamW on the vectors, with warm-up and cosine decay over `steps`.

    lr: of the matrices (Muon's steps scaled to AdamW's size); vector_lr: of the vectors, by default lr. Gradients are
    clipped to norm 1. Parameters below float32 are updated through float32 `masters`. what: the refiner's name, for
    errors; world: the processes over which gradients are summed.
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
        """Copy the best values back into the parameters."""
        for parameter, value in zip(self.parameters, self.state, strict=True):
            parameter.copy_(value)


@contextmanager
def training(parameters: list[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """Inside, only these parameters have gradients; every requires_grad is restored afterwards."""
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
