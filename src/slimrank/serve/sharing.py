"""Which modules of a model read one tensor, found by running a few tokens: for any architecture, no name looked at."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.model.modules import attached


@torch.no_grad()
def readers_of_one_input(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """Groups of several of `modules`, by name in the order they run, that read the very same tensor once each."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    with _calls(modules) as calls:
        model(tokens, use_cache=False)
    groups: dict[int, list[str]] = {}
    for name, x in calls:
        groups.setdefault(id(x), []).append(name)
    return [names for names in groups.values() if len(names) > 1 and len(set(names)) == len(names)]


@contextmanager
def _calls(modules: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, Tensor]]]:
    """The (name, input) of each call of the modules; the inputs are kept, so that no two share an id."""
    calls: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        return lambda module, args: calls.append((name, args[0]))

    with attached(module.register_forward_pre_hook(note(name)) for name, module in modules.items()):
        yield calls
