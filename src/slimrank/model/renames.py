"""Names that transformers changes between a model in memory and its files, and does not change back for factors."""

from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedModel


def lost_names(model: PreTrainedModel, linears: Collection[str]) -> set[str]:
    """The linears whose factors would be read back under another name than they were saved from.

    None before transformers 5, which keeps names as they are.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key, revert_weight_conversion
    except ImportError:
        return set()
    mapping: list[Any] = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters: list[Any] = [one for one in mapping if not isinstance(one, WeightRenaming)]

    def comes_back(key: str) -> bool:
        saved = revert_weight_conversion(model, {key: torch.empty(0)})
        return [rename_source_key(name, renamings, converters)[0] for name in saved] == [key]

    return {name for name in linears if mapping and not comes_back(f"{name}.down.weight")}
