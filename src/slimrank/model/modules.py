"""Helpers for the modules of any model: hooks, modes, replacing one, and weights that several share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from slimrank.errors import SlimrankError
from slimrank.forms.linear import is_linear


def shared_linears(model: nn.Module) -> set[str]:
    """The linears whose weight is also another module's, by every name that they have."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    linears = dict(model.named_modules(remove_duplicate=False))
    return {name for names in holders.values() if len(names) > 1 for name in names if is_linear(linears[name])}


@contextmanager
def attached(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """The hooks are removed at the end."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode inside, each module's own mode coming back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def require_finite_weights(model: nn.Module) -> None:
    """Raise a SlimrankError that names the first parameter with NaN or Inf in it."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SlimrankError(f"{name} holds NaN or Inf: the model cannot be compressed, get intact weights.")


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
