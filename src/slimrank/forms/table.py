"""The forms by name."""

from reprlib import repr as shortly
from typing import Any

from slimrank.errors import SlimrankError
from slimrank.forms.base import Form
from slimrank.forms.dense import Dense
from slimrank.forms.joint import Joint
from slimrank.forms.kept_columns import KeptColumns
from slimrank.forms.low_rank import LowRank
from slimrank.forms.pivoted import Pivoted
from slimrank.forms.shared import SharedInput, SharedOutput

FORMS: dict[str, type[Form]] = {
    LowRank.form: LowRank,
    Pivoted.form: Pivoted,
    KeptColumns.form: KeptColumns,
    Joint.form: Joint,
    Dense.form: Dense,
    SharedInput.form: SharedInput,
    SharedOutput.form: SharedOutput,
}


def form_of(name: str, entry: dict[str, Any], least: int = 1) -> type[Form]:
    """The class of the layer `name` with the JSON `entry`; a SlimrankError names a form or rank that can't be.

    least: the lowest rank, 0 for an expert's matrix.
    """
    form, rank = entry.get("form"), entry.get("rank")
    if not isinstance(form, str) or form not in FORMS:
        raise SlimrankError(f"The layer {name} has the unknown form {shortly(form)}; known are {', '.join(FORMS)}.")
    if FORMS[form].ranked and (type(rank) is not int or rank < least):
        raise SlimrankError(f"The layer {name} has the rank {shortly(rank)}; give a whole number from {least}.")
    FORMS[form].check_bits(name, entry.get("bits"), entry.get("group"))
    return FORMS[form]
