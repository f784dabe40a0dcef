"""A model's weights by part: a decoder block's index, or None for everything outside the blocks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.forms import LAYERS, Embedding, form_of, link
from slimrank.forms.embedding import TiedHead, put_embedding
from slimrank.store.pieces import Pieces

Part = int | None


class Weights:
    """All weights in memory; room: bytes of the parts that stay there while they are not in use."""

    room: int = 2**62

    def __init__(self, model: nn.Module, prefix: str, count: int) -> None:
        """prefix: the name of the list of blocks; count: the number of blocks."""
        self.model, self.prefix = model, prefix
        self.parts: tuple[Part, ...] = (None, *range(count))
        self._matrices = {
            f"{name}.{leaf}": module
            for name, module in model.named_modules()
            for leaf, parameter in module.named_parameters(recurse=False)
            if parameter.ndim > 1
        }
        self._vectors = [
            (module, leaf, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            for module in model.modules()
            for leaf, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 1
        ]

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return next(self.model.parameters()).device

    @property
    def held(self) -> int:
        """Bytes of the parts in memory."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @contextmanager
    def hold(self, part: Part) -> Iterator[None]:
        """Inside, the part is in memory."""
        yield

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, all parts are in memory."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(self.hold(part))
            yield

    @contextmanager
    def dense_vectors(self) -> Iterator[None]:
        """Inside, norms and biases are the dense model's, without the refiners' changes."""
        ours = [(module, leaf, module._parameters[leaf]) for module, leaf, _ in self._vectors]
        for module, leaf, vector in self._vectors:
            module._parameters[leaf] = vector
        try:
            yield
        finally:
            for module, leaf, parameter in ours:
                module._parameters[leaf] = parameter

    def dense_samples(self, count: int) -> Iterator[tuple[str, torch.Size, Tensor]]:
        """Yield every dense parameter's name, shape, and about `count` of its values (float32, CPU)."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.shape, sample(parameter.detach(), count).float().cpu()

    def part_of(self, name: str) -> Part:
        """The part that a tensor or module belongs to, by its full name."""
        return part_of(self.prefix, name)

    def keep(self, part: Part, pieces: Pieces, key: str, facts: dict[str, Any] | None = None) -> None:
        """Save the part as it is now, without the matrices that are still dense."""
        with self.hold(part):
            state = {
                name: tensor
                for name, tensor in self.model.state_dict().items()
                if self.part_of(name) == part and not self._still_dense(name, tensor)
            }
        forms = {
            name: module.entry()
            for name, module in self.model.named_modules()
            if isinstance(module, LAYERS) and self.part_of(name) == part
        }
        pieces.save(key, state, {**(facts or {}), "forms": forms})

    def restore(self, part: Part, pieces: Pieces, key: str) -> dict[str, Any]:
        """Load the part as it was saved under `key`; returns its facts."""
        tensors, facts = pieces.load(key)
        for name, entry in facts["forms"].items():
            dense = self._matrices[f"{name}.weight"]
            if entry["form"] == Embedding.form:
                self._restore_embedding(name, entry)
            else:
                self.model.set_submodule(name, form_of(name, entry, 0).shell(dense, entry, device="meta"))
        link(self.model)
        for name, tensor in tensors.items():
            put(self.model, name, tensor.to(self.device))
        return facts

    def _restore_embedding(self, name: str, entry: dict[str, Any]) -> None:
        """Put an empty embedding of few bits in its place, from the plain one and the head that may be tied to it."""
        plain: Any = self._matrices[f"{name}.weight"]
        for path, module in list(self.model.named_modules()):
            if isinstance(module, TiedHead):
                self.model.set_submodule(path, self._matrices[f"{path}.weight"])
        self.model.set_submodule(name, plain)
        put_embedding(self.model, name, Embedding.shell(plain, entry))

    def _rounded(self, name: str) -> bool:
        """Whether a tensor belongs to an embedding of few bits."""
        modules = (self.model.get_submodule(path) for path in prefixes(name))
        return any(isinstance(module, LAYERS) for module in modules)

    def stored(self, pieces: Pieces, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """The model's tensors in `dtype` for writing a checkpoint; None if they are in the model itself."""
        return None

    def _still_dense(self, name: str, tensor: Tensor) -> bool:
        module = self._matrices.get(name)
        if module is None:
            return (
                self.part_of(name) is None
                and tensor.ndim > 1
                and tensor.is_floating_point()
                and not self._rounded(name)
            )
        return self.model.get_submodule(name.rpartition(".")[0]) is module


def prefixes(name: str) -> Iterator[str]:
    """The names of the modules that a tensor is in, from the innermost."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def part_of(prefix: str, name: str) -> Part:
    """The part that a tensor or module of that full name belongs to; prefix: the name of the list of blocks."""
    inside, _, rest = name.partition(f"{prefix}.")
    return int(rest.partition(".")[0]) if not inside and rest else None


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer with that full name by a tensor."""
    owner, _, leaf = name.rpartition(".")
    place(model.get_submodule(owner), leaf, tensor)


def place(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Replace a module's own parameter or buffer by a tensor."""
    old = module._parameters.get(leaf)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=old is not None and old.requires_grad)
    else:
        module._buffers[leaf] = tensor


def sample(tensor: Tensor, count: int) -> Tensor:
    """About `count` values, evenly spaced by an odd step, so that a width of 2^k does not repeat the same columns."""
    return tensor.flatten()[:: tensor.numel() // count | 1]
