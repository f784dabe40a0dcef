"""A causal LM as entry, blocks and head, found by walking its modules: no module name is ever looked at."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.errors import SlimrankError, UsageError
from slimrank.linear import is_linear, weight_of

Filter = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Call:
    """What a block receives beside its hidden states: masks, rotary embeddings, positions."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The ModuleList whose modules hold the most linear parameters, the outermost where two tie."""

    def linear_parameters(module: nn.Module) -> int:
        return sum(weight_of(m).numel() for m in module.modules() if is_linear(m))

    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    found = max(lists, key=lambda item: linear_parameters(item[1]), default=None)
    if found is None or linear_parameters(found[1]) == 0:
        raise SlimrankError(f"{type(model).__name__} has no list of blocks with linears in it, so nothing to compress.")
    return found


class Decoder:
    """A causal LM that can be run a block at a time.

    `enter` gives the first block's input, `run` one block, `head` the logits that follow from the last block's output.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.prefix, self.blocks = find_blocks(model)
        self._returns_tuple: dict[type, bool] = {}

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the entry embeddings are."""
        return next(self.model.parameters()).device

    def linears(self, chosen: Filter | None = None) -> list[dict[str, nn.Module]]:
        """Per block, its dense linears by full name; `chosen` may drop some of them.

        Raises:
            UsageError: if the filter leaves none.
        """
        found = [
            {
                name: module
                for name, module in block.named_modules(prefix=f"{self.prefix}.{index}")
                if is_linear(module) and (chosen is None or chosen(name, module))
            }
            for index, block in enumerate(self.blocks)
        ]
        if not any(found):
            raise UsageError("The filter matches none of the decoder blocks' linears: widen it.")
        return found

    def outside_linears(self) -> dict[str, int]:
        """The blocks' matrices that are in no linear and stay as they are, such as fused experts, by numbers held."""
        inside = {id(p) for module in self.blocks.modules() if is_linear(module) for p in module.parameters()}
        named = self.blocks.named_parameters(prefix=self.prefix)
        return {name: p.numel() for name, p in named if p.ndim > 1 and id(p) not in inside}

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
        return (hidden,) if self._returns_tuple.get(type(self.blocks[index])) else hidden

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
                if kind not in self._returns_tuple:
                    self._returns_tuple[kind] = isinstance(original(*args, **kwargs), tuple)
                return self._like_block(index, hidden)

            return forward

        with self._replaced([recorder(i) for i in range(len(self))]), torch.no_grad():
            self.model(input_ids=ids, use_cache=False)
        if len(calls) != len(self):
            raise SlimrankError(
                f"{self.prefix}: {len(calls)} of its {len(self)} blocks ran once each; cannot follow it."
            )
        return first[0], calls

    def run(self, index: int, hidden: Tensor, call: Call) -> Tensor:
        """The hidden states after block `index`."""
        output = self.blocks[index](hidden, *call.args, **call.kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def head(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) from the last block's output; differentiable in `hidden`."""
        last = len(self) - 1

        def stub(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                return self._like_block(index, hidden if index == last else self._split(index, args, kwargs)[0])

            return forward

        with self._replaced([stub(i) for i in range(len(self))]):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def require_finite_weights(model: nn.Module) -> None:
    """Raise a SlimrankError that names the first parameter with NaN or Inf in it."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SlimrankError(f"{name} holds NaN or Inf: the model cannot be compressed, get intact weights.")


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
