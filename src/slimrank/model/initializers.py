"""Initialisers of a model class that fail on compressed layers: transformers runs them whenever it loads a model."""

import copy
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from accelerate import init_empty_weights
from transformers import PreTrainedModel
from transformers.utils import logging

from slimrank.errors import SlimrankError
from slimrank.forms import LowRank
from slimrank.model.modules import set_module


def failing_initializers(model: PreTrainedModel, linears: Collection[str]) -> set[str]:
    """Those of the `linears` (names) that must stay dense for every module of the model to be initialised.

    Tried on a copy of the model without weights, each linear in rank 1.

    Raises:
        SlimrankError: if an initialiser fails that has none of them as its module, in it, or around it.
    """
    with quiet(), init_empty_weights(include_buffers=True):
        empty = type(model)(copy.deepcopy(model.config))
        modules, found = dict(empty.named_modules()), set[str]()
        dense = {name: modules[name] for name in linears if name in modules}  # a model may be changed in memory
        known = failures(empty).keys()
        for name, linear in dense.items():
            set_module(empty, name, LowRank.shell(linear, {"form": LowRank.form, "rank": 1}))
        while failed := {module: why for module, why in failures(empty).items() if module not in known}:
            read = {name for module in failed for name in concerned(module, dense.keys() - found)}
            if not read:
                module, why = next(iter(failed.items()))
                raise SlimrankError(
                    f"{type(model).__name__} cannot be compressed: transformers fails to initialise its "
                    f"{module or 'weights'} beside compressed layers ({why})."
                )
            for name in read:
                set_module(empty, name, dense[name])
            found |= read
    return found


def failures(model: PreTrainedModel) -> dict[str, str]:
    """The modules whose initialiser fails, by name, and why."""
    found = {}
    owners: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():  # the innermost model of transformers' initialises a module
        owners[name] = module if isinstance(module, PreTrainedModel) else owners[name.rpartition(".")[0]]
        try:
            owners[name]._init_weights(module)
        except Exception as error:  # a model's own code raises anything
            found[name] = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return found


def concerned(module: str, linears: Collection[str]) -> set[str]:
    """The linear that the module of this name is or is a factor of, or else those that it holds itself."""
    own = {name for name in linears if f"{module}.".startswith(f"{name}.")}
    return own or {name for name in linears if name.rpartition(".")[0] == module}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of building a model again."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(before)
