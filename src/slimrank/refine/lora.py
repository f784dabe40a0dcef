"""SVD-LLM's sequential LoRA (arXiv 2403.07378): an adapter on every U is trained and merged, then one on every V."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.calibrate.needs import Holds, Work
from slimrank.errors import MissingLibrary, SlimrankError
from slimrank.model.decoder import Decoder
from slimrank.numerics.losses import next_token_losses
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.factors import low_rank_layers
from slimrank.runtime.world import ALONE, World
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.windows import Windows

Count = Annotated[int, Field(ge=1)]


class Lora(Refiner):
    """Two trainings on the next token's loss over the calibration windows, U (`up`) first and V (`down`) after it.

    steps: of each training; batch: windows in a step; tokens: the first tokens of a window, all by default; rank,
    alpha: of the adapters; lr: of AdamW, decays linearly to 0.
    """

    name: Literal["lora"] = "lora"
    trains: ClassVar[bool] = True
    needs_floats: ClassVar[bool] = True

    steps: Count = 400
    batch: Count = 16
    tokens: Annotated[int, Field(ge=2)] | None = None
    rank: Count = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    lr: Annotated[float, Field(gt=0)] = 1e-4

    def work(self, windows: Windows) -> Work:
        """Passes forward and back, for two adapters."""
        return Work(2 * self.steps * self.batch * windows.calibration[0, : self.tokens].numel(), blocks=3, head=3)

    def holds(self, windows: Windows) -> Holds:
        """The states of every block for a batch, and three copies of its logits."""
        return Holds(self.batch * windows.calibration[0, : self.tokens].numel(), every_block=True, rows=3)

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Train and merge both adapters; returns a note with the held-out loss before, between and after."""
        layers = low_rank_layers(spectra.model, "lora")
        decoder, windows = spectra.model.decoder, spectra.evidence.windows
        model, ids = decoder.model, windows.calibration[:, : self.tokens].to(decoder.device)
        losses = [held_out_loss(decoder, windows.held_out)]
        with torch.random.fork_rng(), _trainable_kept(model):
            torch.manual_seed(windows.record["seed"])
            for factor in ("up", "down"):
                targets = [f"{name}.{factor}" for name in layers]
                steps = run.track(range(self.steps), f"LoRA {factor}", self.steps)
                train_adapter(model, targets, self, ids, steps, decoder.world)
                losses.append(held_out_loss(decoder, windows.held_out))
        path = " -> ".join(f"{loss:.4f}" for loss in losses)
        return [f"Held-out loss {path} nats per token by LoRA (compressed, U trained, V trained)."]


def train_adapter(
    model: PreTrainedModel, targets: list[str], options: Lora, ids: Tensor, steps: Any, world: World = ALONE
) -> None:
    """Train an adapter on the linears `targets` with windows `ids` (windows, tokens), and merge it into them.

    Each process takes its share of every step's windows.
    """
    peft = _peft()
    config = peft.LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=targets, lora_dropout=0.0)
    adapted = peft.get_peft_model(model, config)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.steps)
    with torch.enable_grad():
        for _ in steps:
            mine = world.share(ids[torch.randint(len(ids), (options.batch,))])
            loss = next_token_loss(model, mine) * (len(mine) / options.batch)
            if not math.isfinite(world.total(loss.item())):
                raise SlimrankError("The LoRA loss became NaN or Inf: lower refine.lora's lr.")
            optimizer.zero_grad()
            loss.backward()
            world.add_up(*(p.grad for p in parameters))
            optimizer.step()
            schedule.step()
    adapted.merge_and_unload()


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """The mean negative log-likelihood of tokens 1.. of ids (windows, tokens), in nats."""
    losses = next_token_losses(model(input_ids=ids, use_cache=False).logits, ids)
    return losses.sum() / losses[:, 1:].numel()


@torch.no_grad()
def held_out_loss(decoder: Decoder, held_out: Tensor) -> float:
    """The next-token loss in nats per token over held-out windows (windows, tokens)."""
    windows = decoder.world.share(held_out).to(decoder.device).split(1)
    total = decoder.world.total(sum(next_token_loss(decoder.model, window).item() for window in windows))
    return total / len(held_out) if len(held_out) else float("nan")


@contextmanager
def _trainable_kept(model: nn.Module) -> Iterator[None]:
    """Restore every parameter's requires_grad afterwards, since PEFT freezes what it adapts."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before.get(name, True))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingLibrary("refine.lora needs PEFT: pip install 'slimrank[lora]'.") from error
    return peft
