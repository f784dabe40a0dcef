"""Fused experts shown as modules of linears, one expert each, whose weights are views of the fused parameters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.forms.experts.fused import Layout, Rows, activation, layout_of, norm_of, spread
from slimrank.forms.experts.stand_in import StandIn

Watch = Callable[["Unfolded", Tensor, Rows], Rows]
"""Is told of the hidden states and the routing of every call of a module, and may return another routing."""


class Expert(nn.Module):
    """One expert's two linears, under the names of the fused parameters that they are views of."""

    def __init__(self, linears: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, linear in linears.items():
            self.add_module(name, linear)


class Unfolded(StandIn):
    """Stands where fused experts stood and computes what they do: expert e's linears are e.NAME, such as 3.down_proj.

    watch: see Watch; share: of the tokens of the last call, how many an expert got on average.
    """

    watch: Watch | None = None
    share: float = 1.0

    def __init__(self, fused: nn.Module, layout: Layout) -> None:
        super().__init__(fused, layout)
        for expert in range(layout.experts):
            self.add_module(
                str(expert), Expert({name: linear_of(fused, layout, name, expert) for name in layout.roles})
            )
        self.train(fused.training)

    def expert(self, number: int) -> dict[str, nn.Module]:
        """An expert's two modules, linears or what took their places, by role."""
        return {role: self.get_submodule(f"{number}.{role}") for role in self.layout.roles}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the fused module's."""
        arguments = self.layout.arguments
        given = (*args, *(kwargs[name] for name in arguments[len(args) :]))
        act = activation(self.fused, self.layout)

        def expert(number: int, x: Tensor) -> Tensor:
            up, down = self.expert(number).values()
            y: Tensor = down(act(up(x)))
            return y

        def routed(rows: Rows) -> Rows:
            tokens = len(hidden_states) * (self.layout.experts if given else 1)
            self.share = sum(map(len, rows.values())) / max(tokens, 1)
            return rows if self.watch is None else self.watch(self, hidden_states, rows)

        return spread(hidden_states, given, self.layout, norm_of(self), expert, routed)


def linear_of(fused: nn.Module, layout: Layout, name: str, expert: int) -> nn.Linear:
    """One expert's matrix as a linear that shares its memory."""
    matrix, bias = fused.get_parameter(name), layout.biased and fused.get_parameter(f"{name}_bias")
    weight = matrix.detach()[expert]
    weight = weight.T if layout.transposed else weight
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layout.biased)
    linear.weight = nn.Parameter(weight, requires_grad=matrix.requires_grad)
    if isinstance(bias, nn.Parameter):
        linear.bias = nn.Parameter(bias.detach()[expert], requires_grad=bias.requires_grad)
    return linear


def unfold(model: nn.Module) -> None:
    """Show all fused experts of the model as linears, in place (see Unfolded)."""
    found = [(name, module, layout) for name, module in model.named_modules() if (layout := layout_of(module))]
    for name, module, layout in found:
        model.set_submodule(name, Unfolded(module, layout))


def unfolded(model: nn.Module) -> dict[str, Unfolded]:
    """The unfolded experts in a model, by full name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Unfolded)}


def place_of(model: nn.Module, linear: str) -> tuple[str, str] | None:
    """The name of the unfolded experts that a linear is in, and its role there; None for any other linear."""
    owner, _, rest = linear.rpartition(".")
    owner = owner.rpartition(".")[0]
    try:
        return (owner, rest) if isinstance(model.get_submodule(owner), Unfolded) else None
    except AttributeError:
        return None


@contextmanager
def watching(modules: Iterator[Unfolded] | list[Unfolded], watch: Watch) -> Iterator[None]:
    """Inside, `watch` is told of every call of these modules."""
    modules = list(modules)
    before = [module.watch for module in modules]
    for module in modules:
        module.watch = watch
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            module.watch = own
