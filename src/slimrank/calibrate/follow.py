"""Before the work: one window through the model and through its blocks one by one, which must give the same logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from slimrank.calibrate.stream import Stream
from slimrank.errors import SlimrankError
from slimrank.forms.base import Form
from slimrank.forms.linear import shape_of, weight_of
from slimrank.model.compressible import replaced
from slimrank.model.decoder import Call, Decoder
from slimrank.model.initializers import failing_initializers
from slimrank.model.renames import lost_names
from slimrank.texts.tokens import encode

TEXT = "The first window of a text says whether the blocks, one after the other, are the model: 3, 1, 4 and 15. "
TOKENS, LOGITS = 32, 2**22  # of a window, and numbers of all logits
APART = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the logits' spread
RENAMED = "have names that transformers does not read back as they were saved"
INITIALISED = "are initialised by code that knows no compressed layers, which transformers runs on loading"
READ = "are read elsewhere than in their own forward"
TRAINED = "are read elsewhere than in their own forward when the model trains"


class StandIn(Form):
    """A dense linear as a compressed one looks from outside: without its weight, and noting when that is asked for."""

    form = "stand-in"

    def __init__(self, dense: nn.Module, asked: Callable[[], None]) -> None:
        weight = weight_of(dense)
        rows, columns = shape_of(dense)
        super().__init__(columns, rows, min(rows, columns), device=weight.device, dtype=weight.dtype)
        self.__dict__["dense"], self.__dict__["asked"] = dense, asked

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            self.asked()
        return getattr(self.dense, "bias", None) if name == "bias" else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """What the dense linear gives."""
        return self.dense(x)


def fixed_windows(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """Two windows (2, tokens) of a fixed text's ids, of as many tokens as the logits have room for."""
    known = [token for token in encode(tokenizer, [TEXT], special_tokens=False)[0] if token < vocabulary]
    tokens = max(4, min(TOKENS, LOGITS // vocabulary // 2))
    ids = (known or [0, 1]) * tokens
    return torch.tensor([ids[:tokens], ids[1 : tokens + 1][::-1]])


def follow(decoder: Decoder, ids: Tensor) -> Tensor:
    """Make sure that the blocks, run one by one on the windows `ids`, give the model's logits, which are returned.

    Linears that would not work once they are compressed, also in training, since other code reads their weight or
    transformers renames it, are added to `decoder.stays`.

    Raises:
        SlimrankError: if the model cannot be followed, with the reason.
    """
    ids = ids.to(decoder.device)
    with seeded():
        expected = decoder.logits(ids)
    kind = type(decoder.model).__name__
    if not expected.isfinite().all():
        raise SlimrankError(f"{kind} gives NaN or Inf on a short text: get intact weights, or try --dtype float32.")
    linears = {name: module for block in decoder.linears() for name, module in block.items()}
    decoder.stays |= dict.fromkeys(lost_names(decoder.model, linears), RENAMED)
    linears = {name: module for name, module in linears.items() if name not in decoder.stays}
    decoder.stays |= dict.fromkeys(failing_initializers(decoder.model, linears), INITIALISED)
    linears = {name: module for name, module in linears.items() if name not in decoder.stays}
    why, asked = attempt(decoder, ids, expected, linears)
    while why is not None and asked:
        roles = {decoder.role(name) for name in asked}
        decoder.stays |= {name: READ for name in linears if decoder.role(name) in roles}
        linears = {name: module for name, module in linears.items() if name not in decoder.stays}
        why, asked = attempt(decoder, ids, expected, linears)
    if why is not None:
        raise SlimrankError(f"{kind} cannot be compressed block by block: {why}.")
    while linears and (late := fail_in_training(decoder, ids[:1], linears)):
        roles = {decoder.role(name) for name in late}
        decoder.stays |= {name: TRAINED for name in linears if decoder.role(name) in roles}
        linears = {name: module for name, module in linears.items() if name not in decoder.stays}
    return expected


def attempt(
    decoder: Decoder, ids: Tensor, expected: Tensor, linears: dict[str, nn.Module]
) -> tuple[str | None, list[str]]:
    """Walk with stand-ins for the linears: why the logits differ, and the linears that may be to blame.

    These are the ones whose tensors were asked for: the last one where that ended the walk, else all.
    """
    asked: list[str] = []
    stand_ins = {name: StandIn(dense, partial(asked.append, name)) for name, dense in linears.items()}
    why = None
    try:
        with replaced(decoder.model, stand_ins), seeded():
            why = difference(walked(decoder, ids), expected)
    except Exception as error:  # a model's own code raises anything
        if isinstance(error, SlimrankError) and error.__cause__ is not None:
            raise  # of a disk, not of the model
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        asked = asked[-1:]
    return why, asked


def fail_in_training(decoder: Decoder, ids: Tensor, linears: dict[str, nn.Module]) -> list[str]:
    """The linears whose tensors a block asked for last before it failed, which with the dense ones it does not.

    Of blocks that are made alike the first is tried. Where a library has fused kernels for training, some code hands
    them the weight of a linear that it calls otherwise.
    """
    stream, tried, failing = Stream(decoder, ids, batch=1), set[tuple[type, ...]](), list[str]()
    for index, block in enumerate(decoder.blocks):
        kind = tuple(type(module) for module in block.modules())
        if kind in tried:
            continue
        tried.add(kind)
        asked, at = list[str](), (index, stream.hidden[0], stream.calls[0][index])
        inside = {name: dense for name, dense in linears.items() if name.startswith(f"{decoder.prefix}.{index}.")}
        with replaced(decoder.model, {name: StandIn(one, partial(asked.append, name)) for name, one in inside.items()}):
            works = runs_in_training(decoder, *at)
        if not works and asked and runs_in_training(decoder, *at):
            failing.append(asked[-1])
    return failing


@torch.no_grad()
def runs_in_training(decoder: Decoder, index: int, hidden: Tensor, call: Call) -> bool:
    """Whether a block runs in training mode."""
    block = decoder.blocks[index].train()
    try:
        with seeded():
            decoder.run(index, hidden, call)
    except Exception as error:  # a model's own code raises anything
        if isinstance(error, SlimrankError) and error.__cause__ is not None:
            raise  # of a disk, not of the model
        return False
    finally:
        block.eval()
    return True


@torch.no_grad()
def walked(decoder: Decoder, ids: Tensor) -> Tensor:
    """Logits of the windows, in batches of one, by way of the blocks."""
    stream = Stream(decoder, ids, batch=1)
    for hidden, one in zip(stream.hidden, stream.ids, strict=True):
        if hidden.shape[:-1] != one.shape:
            raise SlimrankError(
                f"its blocks pass on states of shape {tuple(hidden.shape)} for {tuple(one.shape)} tokens, "
                "and slimrank knows (windows, tokens, width) alone"
            )
    stream.skip(len(decoder))
    return torch.cat([decoder.head(one, hidden) for hidden, one in zip(stream.hidden, stream.ids, strict=True)])


def difference(found: Tensor, expected: Tensor) -> str | None:
    """Where the logits differ by more than rounding, in words."""
    if found.shape != expected.shape:
        return f"its blocks one by one give logits of shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    apart, spread = (found.float() - expected.float()).abs().max(), expected.float().std()
    if apart <= APART.get(expected.dtype, 1e-3) * spread:
        return None
    return f"its blocks one by one give other logits, by {apart / spread:.2g} of their spread (looped, or with states?)"


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers each time inside, the program's own coming back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
