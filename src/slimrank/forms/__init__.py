"""The forms a compressed linear layer can take: one file and one line in the table FORMS for each."""

from typing import Any

from torch import nn

from slimrank.forms.base import Form
from slimrank.forms.dense import Dense
from slimrank.forms.embedding import Embedding
from slimrank.forms.experts import Experts
from slimrank.forms.kept_columns import KeptColumns
from slimrank.forms.low_rank import LowRank
from slimrank.forms.pivoted import Pivoted
from slimrank.forms.table import FORMS, form_of
from slimrank.forms.units import link

LAYERS = Form | Experts | Embedding
"""What a compressed layer can be."""


def compressed_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The JSON entry of every compressed layer of `model`, stacked experts and embedding included, by module name."""
    return {name: module.entry() for name, module in model.named_modules() if isinstance(module, LAYERS)}


def has_bits(entry: dict[str, Any]) -> bool:
    """Whether a layer's factors, or those of any of its experts, are quantized."""
    parts = (entry, *(entry.get(key) or {} for key in ("ups", "downs")))
    return any(part.get("bits") for part in parts)


def check_entry(name: str, entry: dict[str, Any]) -> None:
    """Raise a SlimrankError where the layer `name`, a linear, experts or an embedding, can't have this entry."""
    if entry.get("form") == Experts.form:
        Experts.check(name, entry)
    elif entry.get("form") == Embedding.form:
        Embedding.check(name, entry)
    else:
        form_of(name, entry)


__all__ = [
    "FORMS",
    "LAYERS",
    "Dense",
    "Embedding",
    "Experts",
    "Form",
    "KeptColumns",
    "LowRank",
    "Pivoted",
    "check_entry",
    "compressed_layers",
    "form_of",
    "has_bits",
    "link",
]
