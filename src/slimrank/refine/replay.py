"""A cache of the outputs of modules whose weights are final."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


class Replay:
    """The outputs of modules by batch, up to `room` bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._given: dict[tuple[nn.Module, int], list[Any]] = {}

    @contextmanager
    def __call__(self, modules: Iterable[nn.Module], batch: int, *, keep: bool = True) -> Iterator[None]:
        """Inside, modules return their cached outputs of this batch; keep: cache the others', all or none.

        Modules may lie inside others, which come before them: what is inside a module with cached outputs is dropped.
        """
        run, forwards = dict[nn.Module, list[Any]](), [(module, vars(module).get("forward")) for module in modules]
        for module, _ in forwards:
            known = self._given.get((module, batch))
            run[module] = []
            module.forward = recorded(module.forward, run[module]) if known is None else replayed(known)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module, before in forwards:
                del module.forward
                if before is not None:
                    module.forward = before
        found = {module: outputs for module, outputs in run.items() if keep and outputs}
        inside = {inner for module in found for inner in module.modules() if inner is not module}
        self._drop([(module, batch) for module in inside])
        found = {module: outputs for module, outputs in found.items() if module not in inside}
        if size(found) <= self._room:
            self._room -= size(found)
            self._given |= {(module, batch): outputs for module, outputs in found.items()}

    def _drop(self, keys: Iterable[tuple[nn.Module, int]]) -> None:
        self._room += sum(size(self._given.pop(key, [])) for key in keys)

    def clear(self) -> None:
        """Drop all cached outputs."""
        self._drop(list(self._given))


def recorded(original: Callable[..., Any], outputs: list[Any]) -> Callable[..., Any]:
    """The forward that also appends copies of its outputs to `outputs`."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        outputs.append(copied(output))
        return output

    return forward


def replayed(outputs: list[Any]) -> Callable[..., Any]:
    """A forward that returns copies of these outputs in turn."""
    following = iter(outputs)
    return lambda *args, **kwargs: copied(next(following))


def copied(output: Any) -> Any:
    """The output with cloned tensors, since modules may write to their inputs."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)


def size(output: Any) -> int:
    """Bytes of the tensors in an output."""
    return sum(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
