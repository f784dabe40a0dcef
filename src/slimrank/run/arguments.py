"""The types of compress's arguments, checked before anything is loaded."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as shortly
from types import NoneType
from typing import Any

from slimrank.errors import UsageError
from slimrank.model.load import Loaded
from slimrank.plan import Plan
from slimrank.recipe import Recipe

WHOLE, SWITCH = (Integral,), ((bool,), "True or False")
ARGUMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "model": ((str, Path, Loaded), "a hub id, a folder, a GGUF file, `demo`, or what slimrank.load returned"),
    "recipe": ((str, Path, Recipe), "a recipe's name, its file, or a Recipe"),
    "keep": ((Real, NoneType), "a number above 0 and at most 1, or None"),
    "size": ((*WHOLE, str, NoneType), "a number of bytes, a text such as '90MB', or None"),
    "bits": ((Real, NoneType), "a number above 0, or None"),
    "speedup": ((Real, NoneType), "a number from 1 on, or None"),
    "tokens": ((*WHOLE, NoneType), "a whole number or None"),
    "samples": (WHOLE, "a whole number"),
    "window": ((*WHOLE, NoneType), "a whole number or None"),
    "seed": (WHOLE, "a whole number"),
    "filter": ((Callable, NoneType), "a function (name, module) -> bool, or None"),
    "plan": ((Plan, NoneType), "a Plan, such as Plan.load returns, or None"),
    "plan_only": SWITCH,
    "chat": SWITCH,
    "special_tokens": SWITCH,
    "overwrite": SWITCH,
    "resume": SWITCH,
    "device": ((str,), "a device's name, such as cpu or cuda"),
    "dtype": ((str,), "a dtype's name, such as float32"),
    "out": ((str, Path, NoneType), "a path or None"),
    "memory": ((*WHOLE, NoneType), "a number of bytes or None"),
}


def require_types(given: Mapping[str, Any]) -> None:
    """Raise a UsageError that names the first argument of a wrong type, and what to give."""
    for name, (kinds, wanted) in ARGUMENTS.items():
        value = given[name]
        switch = isinstance(value, bool) and bool not in kinds
        if switch or not isinstance(value, kinds):
            raise UsageError(f"{name} is {shortly(value)}, of type {type(value).__name__}: give {wanted}.")
    settings = given["settings"]
    listed = isinstance(settings, Sequence) and not isinstance(settings, str | bytes)
    if not listed or not all(isinstance(setting, str) for setting in settings):
        raise UsageError(f"settings is {shortly(settings)}: give a list of texts, such as ['metric=identity'].")
