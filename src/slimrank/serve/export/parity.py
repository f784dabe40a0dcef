"""Whether an exported model computes what its checkpoint does: greedy tokens, and the logits on the way."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from slimrank.errors import SlimrankError
from slimrank.model.load import Loaded

TOKENS = 64
PROMPT = 16
BOUND = 1e-4
"""Largest difference of a logit where both compute in float32, as a share of the largest logit above 1."""


@dataclass
class Runner:
    """An exported model: `start` begins a sequence; each call then maps ids (1, n) to logits (1, n, vocabulary).

    rounded: its weights were rounded to 16 bits, so that tokens may part and logits agree to that precision only.
    """

    start: Callable[[], Callable[[Tensor], Tensor]]
    rounded: bool = False


@dataclass(frozen=True)
class Parity:
    """What was compared, and the largest difference of a logit."""

    tokens: int
    difference: float
    rounded: bool


def torch_runner(model: PreTrainedModel, rounded: bool = False) -> Runner:
    """A transformers model as a Runner, with its key-value cache."""

    def start() -> Callable[[Tensor], Tensor]:
        cache = DynamicCache(config=model.config)
        return lambda ids: model(ids, past_key_values=cache, use_cache=True).logits

    return Runner(start, rounded)


@torch.inference_mode()
def check(exported: Runner, loaded: Loaded, to: str) -> Parity:
    """Generate greedily from a random prompt with the checkpoint, and follow with the export.

    Raises a SlimrankError at the first token that differs, or when a logit does by more than the bound.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, loaded.model.config.get_text_config().vocab_size, (1, PROMPT), generator=generator)
    ours, theirs = exported.start(), torch_runner(loaded.model).start()
    bound, largest = 2e-2 if exported.rounded else BOUND, 0.0
    for step in range(TOKENS):
        got, wanted = ours(ids).float(), theirs(ids).float()
        difference = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1))
        token, following = (logits[:, -1].argmax(-1, keepdim=True) for logits in (got, wanted))
        if not difference <= bound:
            raise SlimrankError(
                f"The {to} export differs from the checkpoint by {difference:.1e} of the largest logit at token "
                f"{step}, more than {bound:g}: nothing was written, keep serving the checkpoint itself."
            )
        if not exported.rounded and not torch.equal(token, following):
            raise SlimrankError(
                f"The {to} export picks another token than the checkpoint at step {step}: nothing was written, keep "
                "serving the checkpoint itself."
            )
        largest, ids = max(largest, difference), following
    return Parity(TOKENS, largest, exported.rounded)
