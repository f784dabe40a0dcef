"""Where a checkpoint has the tensors that transformers renames on loading, or fuses, as it does experts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from slimrank.errors import SlimrankError
from slimrank.forms.experts import Unfolded, unfolded
from slimrank.store.slot import Slot
from slimrank.store.source import Source


@dataclass(frozen=True)
class Names:
    """whole: by the name of a parameter, the key of a tensor that is only renamed; experts: by the name of a fused
    parameter that the source has an expert at a time, each expert's keys, the rows of whose tensors follow each other.
    """

    whole: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[str, list[list[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel, source: Source) -> "Names":
        """As transformers' own conversion of checkpoints says; empty before transformers 5, which keeps names.

        Raises:
            SlimrankError: naming a fused parameter for which tensors of some experts are missing.
        """
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key
        except ImportError:
            return cls()
        mapping: list[Any] = get_model_conversion_mapping(model)
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        converters: list[Any] = [one for one in mapping if not isinstance(one, WeightRenaming) and stacks(one)]
        fused = {f"{n}.{role}": one.layout.experts for n, one in unfolded(model).items() for role in one.layout.roles}
        known, whole = {**dict.fromkeys(model.state_dict(), 0), **fused}, dict[str, str]()
        by_pattern: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for key in sorted(source, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
            if pattern is None:
                whole[name] = key
            elif name in fused and 0 not in source.shape(key):
                by_pattern[name][pattern].append(key)
        apart = {name: together(name, fused[name], patterns, converters) for name, patterns in by_pattern.items()}
        return cls(whole, apart)


def together(name: str, experts: int, patterns: Mapping[str, list[str]], converters: Sequence[Any]) -> list[list[str]]:
    """Each expert's keys for the fused parameter `name`, in the order in which its converter puts them together."""
    converter = next(one for one in converters if next(iter(patterns)) in one.source_patterns)
    groups = [patterns.get(pattern, []) for pattern in converter.source_patterns]
    lacking = next((group for group in groups if len(group) != experts), None)
    if lacking is not None:
        raise SlimrankError(
            f"The checkpoint has {len(lacking)} tensors of {experts} experts for {name}: fetch it again."
        )
    return [list(keys) for keys in zip(*groups, strict=True)]


def expert_slots(model: nn.Module, source: Source, names: Names) -> dict[str, Slot] | None:
    """Where each parameter of the model's unfolded experts is in the source, by name; None where one is elsewhere."""
    slots: dict[str, Slot] = {}
    for name, experts in unfolded(model).items():
        for role in experts.layout.roles:
            for leaf in ("weight", "bias")[: 1 + experts.layout.biased]:
                fused = f"{name}.{role}" if leaf == "weight" else f"{name}.{role}_bias"
                found = _slots(fused, source, experts, role, leaf, names)
                if found is None:
                    return None
                slots |= {f"{name}.{number}.{role}.{leaf}": slot for number, slot in enumerate(found)}
    return slots


def _slots(
    fused: str,
    source: Source,
    experts: Unfolded,
    role: str,
    leaf: str,
    names: Names,
) -> list[Slot] | None:
    layout, prefix = experts.layout, fused.rpartition(".")[0]
    key, apart = names.whole.get(fused, fused), names.experts.get(fused)
    shape = experts.fused.get_parameter(fused.rpartition(".")[2]).shape
    slots = []
    for number in range(layout.experts):
        linear: nn.Module = experts.expert(number)[role]
        name = f"{prefix}.{number}.{role}.{leaf}"
        place = (((linear, leaf),), (name,))
        if key in source and source.shape(key) == tuple(shape):
            slots.append(Slot(*place, (key,), number, layout.transposed and leaf == "weight"))
        elif apart is not None:
            slot = Slot(*place, tuple(apart[number]))
            if slot.numel(source) != linear.get_parameter(leaf).numel():
                return None
            slots.append(slot)
        else:
            return None
    return slots


def stacks(converter: Any) -> bool:
    """Whether a conversion stacks the tensors of many experts, at most after putting rows of several together."""
    kinds = [(type(one).__name__, getattr(one, "dim", None)) for one in converter.operations]
    return kinds in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])
