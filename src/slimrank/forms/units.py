"""Layers that share an input factor find each other."""

from torch import nn

from slimrank.forms.base import Form


def link(model: nn.Module) -> None:
    """Let the layers of every unit in the model, which share the input factor of one of them, know each other.

    To be called once all layers of a unit have been put into a model, or built anew from their entries.

    Raises:
        SlimrankError: naming a layer whose unit is not whole.
    """
    units: dict[tuple[str, type[Form]], list[Form]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Form):
            units.setdefault((module.leader_of(name), type(module)), []).append(module)
    for (name, kind), members in units.items():
        kind.link_members(name, members)
