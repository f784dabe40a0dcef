"""Forms that reorder their inputs or outputs at every call, in an order that follows from the stored tensors."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from slimrank.forms.base import Form


class Ordered(Form):
    """A form with an order (n,) int64 that isn't stored: `order` is None until the first call computes it."""

    of_outputs: ClassVar[bool]
    """Whether it is an order of the outputs, and not of the inputs."""

    order: Tensor | None
    in_order: bool = False
    """Whether the order is known to change nothing, so that a call need not look."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("order", None, persistent=False)

    def make_order(self) -> Tensor:
        """The order (n,) int64, computed from the stored tensors."""
        raise NotImplementedError

    def known_order(self) -> Tensor:
        """The order, computed at the first call."""
        return self.known("order", self.make_order)

    def known(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The buffer of this name, made at the first call."""
        held: Tensor | None = getattr(self, name)
        if held is not None:
            return held
        with torch.inference_mode(False):  # it outlives the mode of the first call
            made = make()
        if type(made) is Tensor:  # an export's is fake, and the module outlives the export
            setattr(self, name, made)
        return made

    def forget_order(self) -> None:
        """To be called after the stored tensors have changed."""
        self.order, self.in_order = None, False

    def find_in_order(self) -> None:
        """Set `in_order`."""
        order = self.make_order()
        self.in_order = torch.equal(order, torch.arange(len(order), device=order.device))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_order()
