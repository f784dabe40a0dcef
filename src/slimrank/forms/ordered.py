"""An order of a form's inputs or outputs that follows from what it stores."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from slimrank.forms.base import Form


class Ordered(Form):
    """A form with an order (n,) int64 that isn't stored: `order` is None until the first call makes it."""

    of_outputs: ClassVar[bool]
    """Whether it is an order of the outputs, and not of the inputs."""

    order: Tensor | None
    in_order: bool = False
    """Whether the order is known to change nothing, so that a call need not look."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("order", None, persistent=False)

    def make_order(self) -> Tensor:
        """The order, from the stored tensors as they are now."""
        raise NotImplementedError

    def known_order(self) -> Tensor:
        """The order, made at the first call."""
        if self.order is not None:
            return self.order
        with torch.inference_mode(False):  # it outlives the mode of the first call
            order = self.make_order()
        if type(order) is Tensor:  # an export's is fake, and the module outlives the export
            self.order = order
        return order

    def forget_order(self) -> None:
        """The stored tensors are others now."""
        self.order, self.in_order = None, False

    def find_in_order(self) -> None:
        """See whether the order changes nothing."""
        order = self.make_order()
        self.in_order = torch.equal(order, torch.arange(len(order), device=order.device))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_order()
