"""What stands in the place of a module of fused experts."""

from typing import Any

from torch import nn

from slimrank.forms.experts.fused import Layout


class StandIn(nn.Module):
    """Has the children and the settings, such as num_experts, of the fused module, which is no part of the model.

    fused: that module; layout: how it holds its matrices.
    """

    fused: Any

    def __init__(self, fused: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.__dict__["fused"] = fused
        for name, child in fused.named_children():
            self.add_module(name, child)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "fused" or name not in self.__dict__["fused"].__dict__:
                raise
            return self.__dict__["fused"].__dict__[name]
