"""Measuring a model's blocks and what its linears may become, all in turns, as they will be stored."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from slimrank.budget.layers import layers_to_time
from slimrank.errors import UsageError
from slimrank.evaluate.layers import COLD, Call, Layer, clock_of, in_turns, served, weight_bytes
from slimrank.factorize import Factorizer
from slimrank.factorize.rounded import entry_of
from slimrank.forms.linear import is_linear, shape_of
from slimrank.model.compressible import Compressible, ends_of
from slimrank.model.modules import attached
from slimrank.model.units import Unit
from slimrank.refine.ends import end_grid
from slimrank.rounding.grid import Grid
from slimrank.runtime.digests import sha256_of_json
from slimrank.spectrum.spectra import stacks_of
from slimrank.store.run import Run

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Measured(BaseModel):
    """Seconds: of a dense block by its kind, of the head for one token by its bits (16 for floats), and of layers by
    line and rank (see Times)."""

    model_config = ConfigDict(extra="forbid")

    blocks: list[Positive]
    heads: dict[int, Positive]
    lines: dict[str, Annotated[list[tuple[int, Positive]], Field(min_length=1)]]


@dataclass(frozen=True)
class Bench:
    """What is to be measured: blocks by the index of the first of each kind, and layers, in a dtype for some tokens.

    kinds: of every block its place in `firsts`; stacks: units of several linears that share an input; heads: the matrix
    that gives the logits by its bits, none where there is no such matrix.
    """

    model: Compressible
    tokens: int
    dtype: torch.dtype
    kinds: Sequence[int]
    firsts: Sequence[int]
    stacks: Sequence[Unit]
    layers: Sequence[Layer]
    heads: Mapping[int, Layer]

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.model.decoder.device

    @property
    def key(self) -> str:
        """What the outcome depends on beside the machine, in a line."""
        blocks = [kind_of(self.model.decoder.blocks[first]) for first in self.firsts]
        what = [blocks, *([layer.key, *layer.entries] for layer in (*self.layers, *self.heads.values()))]
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.tokens} tokens, {dtype}, {sha256_of_json(what)[:16]}"

    def measure(self, run: Run) -> Measured:
        """All of it, in turns."""
        whole = self.dtype.itemsize * sum(unit.parameters for unit in self.model.units.values())
        copies = -(-min(COLD, whole) // weight_bytes(self.layers, self.dtype))
        calls: dict[str, Sequence[Call]] = {
            layer.key: layer.calls(self.tokens, self.device, self.dtype, copies) for layer in self.layers
        }
        for place, first in enumerate(self.firsts):
            calls[f"block {place}"] = self.block_calls(first, copies)
        for head in self.heads.values():
            calls[head.key] = head.calls(1, self.device, self.dtype)
        found = in_turns(calls, run.track, clock=clock_of(self.device))
        lines: dict[str, list[tuple[int, float]]] = {}
        for layer in self.layers:
            lines.setdefault(layer.name, []).append((layer.rank, found[layer.key]))
        blocks = [found[f"block {place}"] for place in range(len(self.firsts))]
        heads = {bits: found[head.key] for bits, head in self.heads.items()}
        return Measured(blocks=blocks, heads=heads, lines=lines)

    def block_calls(self, index: int, copies: int) -> list[Call]:
        """Calls of so many copies of a block, as it is stored, on the first block's input."""
        decoder = self.model.decoder
        hidden, calls = decoder.enter(random_ids(self.model, self.tokens))
        call = tree_map(lambda one: self._cast(one), (calls[index].args, calls[index].kwargs))
        found = list[Call]()
        for _ in range(copies):
            with decoder.weights.hold(index):
                block = copy.deepcopy(decoder.blocks[index])
            inside = served(nn.ModuleList([block.to(self.dtype).requires_grad_(False)]), self.device, self.dtype)
            found.append(ran(inside[0], self._cast(hidden), *call))
        return found

    def _cast(self, one: Any) -> Any:
        return one.to(self.dtype) if isinstance(one, Tensor) and one.is_floating_point() else one


def ran(block: nn.Module, hidden: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
    """A call of the block."""
    return lambda: block(hidden, *args, **kwargs)


def random_ids(model: Compressible, tokens: int) -> Tensor:
    """Token ids (1, tokens)."""
    vocabulary = model.decoder.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (1, tokens), generator=generator).to(model.decoder.device)


def kind_of(block: nn.Module) -> list[Any]:
    """What blocks that take equally long have in common."""
    return [type(block).__qualname__, [[name, list(p.shape)] for name, p in block.named_parameters()]]


def bench_of(
    model: Compressible,
    form: Factorizer,
    grids: Sequence[Grid],
    tokens: int,
    dtype: torch.dtype,
    widths: Sequence[int] = (16,),
) -> Bench:
    """What to measure of a model: every kind of block, the layers that its linears may become, and the head.

    grids: that linears may have; widths: bits of the head.

    Raises:
        UsageError: for experts of a mixture, whose share of the tokens is not known before.
    """
    mixed = next((unit for unit in model.units.values() if unit.mixture), None)
    if mixed is not None:
        raise UsageError(
            f"--speedup prices layers that read every token, and {mixed.leader} is an expert's: give --keep or --size, "
            "or leave the experts out by --skip."
        )
    kinds, firsts, seen = list[int](), list[int](), dict[str, int]()
    for index, (block, linears) in enumerate(zip(model.decoder.blocks, model.blocks, strict=True)):
        roles = [model.decoder.role(name) for name in linears]
        place = seen.setdefault(sha256_of_json([kind_of(block), roles]), len(seen))
        kinds.append(place)
        if place == len(firsts):
            firsts.append(index)
    stacks = stacks_of(model, leaders(model, kinds, firsts)) if form.stacks else []
    layers = layers_to_time(model.units.values(), stacks, form, grids)
    return Bench(model, tokens, dtype, kinds, firsts, stacks, layers, heads_of(model, widths))


def heads_of(model: Compressible, widths: Sequence[int]) -> dict[int, Layer]:
    """The matrix that gives the logits, in floats and in these bits; none where it is no plain one."""
    head = ends_of(model.decoder.model)[1]
    if head is None or not is_linear(head):
        return {}
    shape = shape_of(head)
    entries: dict[int, Any] = {bits: entry_of(end_grid(bits)) for bits in widths if bits < 16}
    return {bits: Layer(f"head {bits}b", min(shape), [shape], [entry]) for bits, entry in ({16: {}} | entries).items()}


@torch.no_grad()
def leaders(model: Compressible, kinds: Sequence[int], firsts: Sequence[int]) -> dict[str, str]:
    """By linear, the first one of its block that reads the same input, as the first block of each kind shows."""
    decoder, found = model.decoder, dict[str, str]()
    hidden, calls = decoder.enter(random_ids(model, 2))
    roles = [read_together(model, first, hidden, calls[first]) for first in firsts]
    for index, kind in enumerate(kinds):
        place = f"{decoder.prefix}.{index}."
        found |= {f"{place}{role}": f"{place}{first}" for role, first in roles[kind].items()}
    return found


def read_together(model: Compressible, index: int, hidden: Tensor, call: Any) -> dict[str, str]:
    """By role, in the order in which they ran, the first linear's of the block that read the same tensor."""
    decoder, seen = model.decoder, list[tuple[str, Tensor]]()

    def note(role: str) -> Any:
        return lambda module, args: seen.append((role, args[0]))

    linears = model.blocks[index].items()
    with attached(module.register_forward_pre_hook(note(decoder.role(name))) for name, module in linears):
        decoder.run(index, hidden, call)
    return {role: next(first for first, x in seen if x is own) for role, own in seen}
