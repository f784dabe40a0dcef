"""The forms a compressed linear layer can take: one file and one line in the table FORMS for each."""

from reprlib import repr as shortly
from typing import Any

from torch import nn

from slimrank.errors import SlimrankError
from slimrank.forms.base import Form
from slimrank.forms.joint import Joint, joint_layers
from slimrank.forms.kept_columns import KeptColumns
from slimrank.forms.low_rank import LowRank
from slimrank.forms.pivoted import Pivoted
from slimrank.forms.units import link

FORMS: dict[str, type[Form]] = {
    LowRank.form: LowRank,
    Pivoted.form: Pivoted,
    KeptColumns.form: KeptColumns,
    Joint.form: Joint,
}


def form_of(name: str, entry: dict[str, Any]) -> type[Form]:
    """The class of the layer `name` with the JSON `entry`; a SlimrankError names a form or rank that can't be."""
    form, rank = entry.get("form"), entry.get("rank")
    if not isinstance(form, str) or form not in FORMS:
        raise SlimrankError(f"The layer {name} has the unknown form {shortly(form)}; known are {', '.join(FORMS)}.")
    if type(rank) is not int or rank < 1:
        raise SlimrankError(f"The layer {name} has the rank {shortly(rank)}; give a whole number from 1.")
    FORMS[form].check_bits(name, entry.get("bits"))
    return FORMS[form]


def compressed_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The JSON entry of every compressed layer of `model`, by module name."""
    return {name: module.entry() for name, module in model.named_modules() if isinstance(module, Form)}


__all__ = [
    "FORMS",
    "Form",
    "Joint",
    "KeptColumns",
    "LowRank",
    "Pivoted",
    "compressed_layers",
    "form_of",
    "joint_layers",
    "link",
]
