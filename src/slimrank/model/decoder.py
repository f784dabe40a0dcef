"""A causal LM as entry, blocks and head, found by walking its modules: no module name is ever looked at."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.errors import SlimrankError, UsageError
from slimrank.forms.linear import is_linear, weight_of
from slimrank.model.blocks import find_blocks
from slimrank.model.modules import shared_linears
from slimrank.runtime.memory import Room
from slimrank.runtime.world import ALONE, World
from slimrank.store.weights import Weights

Filter = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Call:
    """What a block receives beside its hidden states: masks, rotary embeddings, positions."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class _Entered(Exception):
    """The last block was reached: what follows is of no interest to `enter`."""


class Decoder:
    """A causal LM that can be run a block at a time.

    `enter` gives the first block's input, `run` one block, `head` the logits that follow from the last block's output.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weights: Weights | None = None,
        *,
        world: World = ALONE,
        states_room: Room = Room(),  # noqa: B008 (a tuple)
    ) -> None:
        """weights: where they live, in memory by default; world: the processes that share the windows; states_room: for
        the hidden states of one set of windows.

        Its attribute `stays` says of the linears that can't be compressed why, by full name; `follow` adds to it.
        """
        self.model = model.eval()
        self.prefix, self.blocks = find_blocks(model)
        self.weights = weights or Weights(model, self.prefix, len(self.blocks))
        self.states_room, self.world = states_room, world
        shared = [name for name in shared_linears(model) if name.startswith(f"{self.prefix}.")]
        self.stays = dict.fromkeys(shared, "share their weights with other modules")
        self._outputs: dict[type, Any] = {}

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the entry embeddings are."""
        return self.weights.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def width(self) -> int:
        """How many numbers a token's hidden state has."""
        return int(self.model.config.get_text_config().hidden_size)

    def linears(self, chosen: Filter | None = None) -> list[dict[str, nn.Module]]:
        """Per block, the dense linears that can be compressed, by full name; `chosen` may drop some of them.

        Raises:
            UsageError: if the filter leaves none.
        """
        found = [
            {
                name: module
                for name, module in block.named_modules(prefix=f"{self.prefix}.{index}")
                if is_linear(module) and name not in self.stays and (chosen is None or chosen(name, module))
            }
            for index, block in enumerate(self.blocks)
        ]
        if not any(found):
            raise UsageError(
                "--only and --skip, or the filter, leave none of the decoder blocks' linears to compress: widen them."
            )
        return found

    def role(self, name: str) -> str:
        """A linear's name inside its block."""
        return name.removeprefix(f"{self.prefix}.").partition(".")[2]

    def outside_linears(self) -> dict[str, int]:
        """The blocks' matrices that stay as they are, by numbers held: fused experts, and linears in `stays`."""
        inside = {
            id(parameter)
            for name, module in self.blocks.named_modules(prefix=self.prefix)
            if is_linear(module) and name not in self.stays
            for parameter in module.parameters()
        }
        named = self.blocks.named_parameters(prefix=self.prefix)
        return {name: p.numel() for name, p in named if p.ndim > 1 and id(p) not in inside}

    def other_linears(self) -> dict[str, int]:
        """The linears outside the blocks, by numbers held, without the one that gives the logits."""
        head = self.model.get_output_embeddings()
        found = {
            name: module for name, module in self.model.named_modules() if is_linear(module) and module is not head
        }
        return {n: weight_of(m).numel() for n, m in found.items() if not n.startswith(f"{self.prefix}.")}

    @contextmanager
    def _replaced(self, forwards: list[Callable[..., Any]]) -> Iterator[None]:
        for block, forward in zip(self.blocks, forwards, strict=True):
            block.forward = forward
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def _like_block(self, index: int, hidden: Tensor) -> Any:
        """`hidden` in the container this block returns it in."""
        like = self._outputs.get(type(self.blocks[index]))
        return type(like)((hidden, *like[1:])) if isinstance(like, tuple | list) else hidden

    def _split(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
        if args:
            return args[0], Call(args[1:], kwargs)
        name = list(inspect.signature(type(self.blocks[index]).forward).parameters)[1]
        return kwargs[name], Call((), {k: v for k, v in kwargs.items() if k != name})

    def enter(self, ids: Tensor) -> tuple[Tensor, list[Call]]:
        """The hidden states (batch, tokens, width) before the first block, and each block's Call."""
        first: list[Tensor] = []
        calls: list[Call] = []

        def recorder(index: int) -> Callable[..., Any]:
            original = self.blocks[index].forward
            kind = type(self.blocks[index])

            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, call = self._split(index, args, kwargs)
                if not first:
                    first.append(hidden)
                calls.append(call)
                if kind not in self._outputs:
                    with self.weights.hold(index):
                        self._outputs[kind] = container(original(*args, **kwargs), hidden)
                if index == len(self) - 1:
                    raise _Entered
                return self._like_block(index, hidden)

            return forward

        recorders = [recorder(i) for i in range(len(self))]
        with self.weights.hold(None), self._replaced(recorders), torch.no_grad(), suppress(_Entered):
            self.model(input_ids=ids, use_cache=False)
        if len(calls) != len(self):
            raise SlimrankError(
                f"the {len(self)} blocks of its largest list, {self.prefix}, ran {len(calls)} times in all on a text "
                "(another tower's, or looped?)"
            )
        return first[0], calls

    def run(self, index: int, hidden: Tensor, call: Call) -> Tensor:
        """The hidden states after block `index`, on the model's device; `hidden` may be elsewhere."""
        with self.weights.hold(index):
            output = self.blocks[index](hidden.to(self.device), *call.args, **call.kwargs)
        result: Tensor = output[0] if isinstance(output, tuple | list) else output
        return result

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of the model as a whole, each block in memory while it runs."""

        def held(index: int) -> Callable[..., Any]:
            original = self.blocks[index].forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                with self.weights.hold(index):
                    return original(*args, **kwargs)

            return forward

        with self.weights.hold(None), self._replaced([held(i) for i in range(len(self))]):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits

    def head(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) from the last block's output; differentiable in `hidden`."""
        last = len(self) - 1

        def stub(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                return self._like_block(index, hidden if index == last else self._split(index, args, kwargs)[0])

            return forward

        with self.weights.hold(None), self._replaced([stub(i) for i in range(len(self))]):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def container(output: Any, hidden: Tensor) -> Any:
    """What else a block returns beside its hidden states, for others like it; large tensors (attention) left out.

    A tensor where the block returns the hidden states alone.
    """
    if not isinstance(output, tuple | list):
        return torch.empty(0)
    rest = [None if isinstance(one, Tensor) and one.numel() > hidden.numel() else one for one in output[1:]]
    return type(output)((None, *rest))
