"""One factor for the matrices of all experts of a layer, and one of each expert's own."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from slimrank.factorize.base import Factorizer
from slimrank.forms.linear import bias_of, weight_of
from slimrank.forms.shared import SIDES, Shared
from slimrank.model.units import Shape, Side, Unit


class SharedFactorizer(Factorizer):
    """Stores r (n + sum of m_e) parameters where experts share the input factor, r (m + sum of n_e) the output factor.

    It is no choice of a recipe: units of all experts of a layer (see Unit.shared) take it beside any form.
    """

    name: Literal["shared"] = "shared"
    side: Side

    @property
    def form(self) -> type[Shared]:
        """The layers' form."""
        return SIDES[self.side]

    def entries(self, shapes: Sequence[Shape], rank: int) -> list[dict[str, Any]]:
        """An entry for each linear, the shared factor counted at the first."""
        first = {"form": self.form.form, "rank": rank}
        return [first, *(first | {"leader": ""} for _ in shapes[1:])]

    def layer(self, factors: Mapping[str, Tensor], dense: nn.Module, leader: str | None) -> Shared:
        """An expert's layer in its dense linear's dtype, from "down" (r, n) and "up" (m, r), of which it may store one.

        leader: the name of the expert's that stores the shared factor, None for that one.
        """
        dtype = weight_of(dense).dtype
        return self.form.member({name: factor.to(dtype) for name, factor in factors.items()}, bias_of(dense), leader)


def form_for(form: Factorizer, unit: Unit) -> Factorizer:
    """The factorizer of a unit in a recipe whose form is `form`."""
    return form if unit.shared is None else SharedFactorizer(side=unit.shared, multiple=form.multiple)
