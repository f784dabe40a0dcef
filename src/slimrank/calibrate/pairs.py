"""Moments of the same tokens in the dense and the compressed model, at one linear."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.model.modules import attached
from slimrank.numerics.gram_sum import GramSum, product
from slimrank.runtime.world import World


@dataclass
class Seen:
    """One linear in one forward pass: input x (..., n), output y (..., m), and what y is added to, if anything."""

    x: Tensor
    y: Tensor
    addend: Tensor | None = None


@dataclass
class PairMoments:
    """Sums over tokens, float64: sums, of x^ x^T (n, n); inputs, of x x^T (n, n); cross[linear], of t x^T (m, n).

    x and x^ are the inputs in the dense and in the compressed model. The target t is the dense model's output without
    bias, W x; with `residual`, where it is added to the residual stream, the output whose sum with the compressed
    residual stream equals the dense one. `cross` is summed for these alone: for the others it is W times `inputs`.
    """

    sums: GramSum | None = None
    inputs: Tensor | None = None
    cross: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0

    def add(
        self, dense: dict[str, Seen], compressed: dict[str, Seen], biases: dict[str, Tensor], residual: bool
    ) -> None:
        """Add one batch of linears that share their input, multiplied in float32 and summed in float64."""
        x = _flat(next(iter(compressed.values())).x)
        if self.sums is None:
            self.sums = GramSum.empty(x.shape[1], x.device)
        self.sums.add(x)
        self.tokens += len(x)
        for name, was in dense.items():
            if corrects(was, residual):
                target, now = was.y, compressed[name].addend
                if was.addend is not None and now is not None:
                    target = target + (was.addend - now)
                cross = product(_flat(target - biases[name] if name in biases else target), x)
                self.cross[name] = self.cross[name].add_(cross) if name in self.cross else cross.double()
        if others := [was for was in dense.values() if not corrects(was, residual)]:
            inputs = product(_flat(others[0].x), x)
            self.inputs = inputs.double() if self.inputs is None else self.inputs.add_(inputs)

    def fill(self, columns: int, device: torch.device) -> None:
        """Zeros for inputs of width n = columns where no batch was added, as for an expert without a token."""
        if self.sums is None:
            self.sums = GramSum.empty(columns, device)
            self.inputs = torch.zeros(columns, columns, dtype=torch.float64, device=device)

    def gram(self) -> Tensor:
        """The sum of x^ x^T (n, n), float64, a new tensor; after `settle` the mean."""
        if self.sums is None:
            raise ValueError("no batch was added")
        return self.sums.full()

    def take(self, name: str, weight: Tensor) -> Tensor:
        """The sum of t x^T (m, n) of a linear with weight W (m, n), once; after `settle` the mean."""
        if name in self.cross:
            return self.cross.pop(name)
        if self.inputs is None:
            raise ValueError(f"no batch with {name} was added")
        return weight.double() @ self.inputs

    def add_up(self, world: World) -> None:
        """Add up the sums over all processes, in place."""
        if self.sums is not None:
            world.add_up(self.sums.packed, *self._sums())
        self.tokens = int(world.total(self.tokens))

    def settle(self) -> None:
        """Divide the sums by the number of tokens, in place."""
        if self.sums is not None:
            self.sums.packed.div_(self.tokens)
        for one in self._sums():
            one.div_(self.tokens)

    def _sums(self) -> list[Tensor]:
        """The sums but x^ x^T, in the same order in every process."""
        return ([] if self.inputs is None else [self.inputs]) + [self.cross[name] for name in sorted(self.cross)]


def corrects(seen: Seen, residual: bool) -> bool:
    """Whether the target of a linear of the dense model is not W x alone."""
    return residual and seen.addend is not None


@contextmanager
def watch_sums(modules: dict[str, nn.Module], awaited: Collection[str] | None = None) -> Iterator[dict[str, Seen]]:
    """Record each module's input, output and addend in one forward pass.

    The pass is aborted once all outputs, and the addends of the `awaited` modules, are recorded; None completes it.
    """
    sums = _Sums(modules, awaited)
    hooks = (module.register_forward_hook(sums.hook(name)) for name, module in modules.items())
    with suppress(_AllSeen), attached(hooks), sums:
        yield sums.seen


class _AllSeen(Exception):
    """Aborts a forward pass whose rest is not needed."""


class _Sums(TorchDispatchMode):
    """Records the other operand of the sum that a linear's output enters: in most decoders the residual stream."""

    def __init__(self, modules: Collection[str], awaited: Collection[str] | None) -> None:
        super().__init__()
        self.seen: dict[str, Seen] = {}
        self._modules, self._awaited = modules, awaited

    def hook(self, name: str) -> Any:
        def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.seen[name] = Seen(args[0], output)
            self._stop_if_done()

        return watch

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and not kwargs and all(isinstance(a, Tensor) for a in args):
            for this, other in (args, args[::-1]):
                for seen in self.seen.values():
                    if seen.y is this and seen.addend is None and other.shape == this.shape:
                        seen.addend = other
                        self._stop_if_done()
        return func(*args, **(kwargs or {}))

    def _stop_if_done(self) -> None:
        if self._awaited is None or len(self.seen) < len(self._modules):
            return
        if all(self.seen[name].addend is not None for name in self._awaited):
            raise _AllSeen


def _flat(x: Tensor) -> Tensor:
    return x.detach().flatten(0, -2)
