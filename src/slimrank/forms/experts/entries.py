"""The JSON of one matrix of all experts of a layer."""

from collections.abc import Sequence
from typing import Any

from slimrank.errors import SlimrankError

DENSE = "dense"
"""The form in the entry of a matrix that is left as it is."""

Entry = dict[str, Any]


def packed(entries: Sequence[Entry]) -> Entry:
    """Entries of many experts as one, each key's value alone where all have it, else a list, null for none."""
    keys = dict.fromkeys(key for entry in entries for key in entry)
    columns = {key: [entry.get(key) for entry in entries] for key in keys}
    return {key: values[0] if all(v == values[0] for v in values) else values for key, values in columns.items()}


def unpacked(entry: Entry, experts: int) -> list[Entry]:
    """The inverse of `packed`.

    Raises:
        SlimrankError: if a list is not as long as there are experts.
    """
    columns = {key: value if isinstance(value, list) else [value] * experts for key, value in entry.items()}
    wrong = [key for key, values in columns.items() if len(values) != experts]
    if wrong:
        raise SlimrankError(f"The key {wrong[0]} of an experts layer has not one value for each of {experts} experts.")
    return [
        {key: values[e] for key, values in columns.items() if values[e] is not None or key == "form"}
        for e in range(experts)
    ]
