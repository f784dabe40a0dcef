"""The list of a model's decoder blocks, found by walking its modules: no module name is ever looked at."""

from contextlib import suppress
from typing import Any

from torch import nn

from slimrank.errors import SlimrankError
from slimrank.forms import Experts, Form
from slimrank.forms.linear import is_linear, weight_of


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Of the ModuleLists with linears that are nearest to the token embedding, the one with most linear parameters.

    The outermost where two tie. The nearest, since a vision tower may be larger than the decoder beside it. Of a
    compressed model the one that holds compressed layers: it may have become smaller than others.
    """

    def linear_parameters(module: nn.Module) -> int:
        return sum(weight_of(m).numel() for m in module.modules() if is_linear(m))

    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    compressed = [item for item in lists if any(isinstance(module, Form | Experts) for module in item[1].modules())]
    if compressed:
        return compressed[0]
    lists = [item for item in lists if linear_parameters(item[1])]
    if not lists:
        raise SlimrankError(f"{type(model).__name__} has no list of blocks with linears in it, so nothing to compress.")
    place = embedding_name(model)
    away = {name: 0 if place is None else steps_between(name, place) for name, _ in lists}
    nearest = [item for item in lists if away[item[0]] == min(away.values())]
    return max(nearest, key=lambda item: linear_parameters(item[1]))


def embedding_name(model: nn.Module) -> str | None:
    """The name of the module that looks tokens up, where the model says which it is."""
    found: Any = None
    with suppress(AttributeError, NotImplementedError):  # no transformers model, or one that does not say
        found = model.get_input_embeddings()  # type: ignore[operator]
    return next((name for name, module in model.named_modules() if module is found), None)


def steps_between(one: str, other: str) -> int:
    """How many edges of the tree of modules lie between two modules, by their names."""
    first, second = one.split("."), other.split(".")
    differ = (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    common = next(differ, min(len(first), len(second)))
    return len(first) + len(second) - 2 * common
