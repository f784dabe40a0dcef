"""Fused experts: a module that holds the matrices of many experts in three-dimensional parameters.

They are recognised by the flags that transformers sets on them (`has_gate`, `is_transposed`, ...) and by their own
parameters; where there are no flags, by two parameters whose shapes fit each other. No class is ever named.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TRIED: dict[Any, bool] = {}
TOKENS = 3  # of the trial, each sent to two experts


@dataclass(frozen=True)
class Layout:
    """How a module of fused experts holds its matrices and how it is called.

    up, down: the names of its parameters: (experts, out, in), or (experts, in, out) where `transposed`; the outputs of
    the first are gate and up in one where `gated`. biased: NAME_bias (experts, out) are parameters too. arguments: of
    its forward, after the hidden states (tokens, width): the experts of each token (tokens, k) and their weights. Empty
    where it is called with (experts * tokens, width): the tokens once for each expert, zeros for those not sent to it.
    """

    up: str
    down: str
    experts: int
    transposed: bool
    gated: bool
    biased: bool
    arguments: tuple[str, ...]

    @property
    def roles(self) -> tuple[str, str]:
        """The names of an expert's two matrices, which are those of the fused parameters."""
        return self.up, self.down


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a module of fused experts; None for any other module."""
    own = dict(module.named_parameters(recurse=False))
    matrices = [name for name, parameter in own.items() if parameter.ndim == 3]
    if len(matrices) != 2:
        return None
    up, down = matrices
    biases = {f"{name}_bias" for name in matrices}
    biased = own.keys() - matrices == biases
    if (own.keys() != set(matrices) and not biased) or len(own[up]) != len(own[down]):
        return None
    arguments = tuple(inspect.signature(type(module).forward).parameters)[2:]
    if len(arguments) not in (0, 2):
        return None
    for transposed, gated in arrangements(module, own[up].shape, own[down].shape):
        layout = Layout(up, down, len(own[up]), transposed, gated, biased, arguments)
        if works(module, layout):
            return layout
    return None


def arrangements(module: nn.Module, up: torch.Size, down: torch.Size) -> list[tuple[bool, bool]]:
    """(transposed, gated) as the module's flags say, else all that its parameters' shapes allow."""
    if hasattr(module, "is_transposed") and hasattr(module, "has_gate"):
        return [(bool(module.is_transposed), bool(module.has_gate))]
    found = []
    for transposed in (False, True):
        (outputs, inputs), (width, inner) = (shape[:0:-1] if transposed else shape[1:] for shape in (up, down))
        if inputs == width and outputs in (inner, 2 * inner):
            found.append((transposed, outputs == 2 * inner))
    return found


def activation(fused: nn.Module, layout: Layout) -> Callable[[Tensor], Tensor]:
    """The function between an expert's two matrices: (..., outputs of the first) to (..., inputs of the second)."""
    if not layout.gated:
        return fused.act_fn  # type: ignore[return-value]
    gate: Any = getattr(fused, "_apply_gate", None)
    return gate or (lambda y: _gate(fused, y))


def _gate(fused: Any, y: Tensor) -> Tensor:
    gate, up = y.chunk(2, dim=-1)
    product: Tensor = up * fused.act_fn(gate)
    return product


def norm_of(fused: nn.Module) -> nn.Module | None:
    """The norm behind every expert, where it has one."""
    return getattr(fused, "post_expert_norm", None) if getattr(fused, "has_post_expert_norm", False) else None


@torch.no_grad()
def works(fused: nn.Module, layout: Layout) -> bool:
    """Whether experts computed one by one give what the module's own forward does, tried with made-up weights.

    Tried once for each class, layout and shape. The weights overlap in memory, so that they take none.
    """
    key = (type(fused), layout, fused.get_parameter(layout.up).shape, fused.get_parameter(layout.down).shape)
    if key not in TRIED:
        try:
            with torch.device("cpu"):  # transformers builds models on no device
                TRIED[key] = _tried(fused, layout)
        except Exception:  # the class's own code raises anything where it is called in another way
            TRIED[key] = False
    return TRIED[key]


def _tried(fused: nn.Module, layout: Layout) -> bool:
    small: Any = copy.copy(fused)
    generator = torch.Generator().manual_seed(0)
    small._parameters = {
        name: nn.Parameter(_overlapping(parameter.shape, generator), requires_grad=False)
        for name, parameter in fused._parameters.items()
        if parameter is not None
    }
    for name, child in fused.named_children():
        small._modules = {**small._modules, name: _in_memory(child)}
    width = small.get_parameter(layout.up).shape[1 if layout.transposed else 2]
    hidden = torch.randn(TOKENS, width, generator=generator, dtype=torch.float32)
    index = torch.stack([torch.randperm(layout.experts, generator=generator)[:2] for _ in range(TOKENS)])
    weights = torch.rand(index.shape, generator=generator, dtype=torch.float32)
    if not layout.arguments:
        sent = torch.zeros(layout.experts, TOKENS, 1, dtype=torch.float32).scatter_(
            0, index.T.unsqueeze(-1), weights.T.unsqueeze(-1)
        )
        hidden = (sent * hidden).flatten(0, 1)
    given = (index, weights)[: len(layout.arguments)]
    own = inspect.unwrap(type(small).forward)  # the plain one, whatever implementation the config chooses
    expected = own(small, hidden, *given)
    found = spread(hidden, given, layout, norm_of(small), lambda e, x: _expert(small, layout, e, x))
    return bool(expected.shape == found.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4))


def _overlapping(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random numbers of that shape over a few that are stored, no two matrices, rows or columns alike."""
    strides = (7, 3, 1) if len(shape) == 3 else (7, 1)
    length = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    numbers = torch.randn(length, generator=generator, dtype=torch.float32)
    return numbers.div_(shape[-1] ** 0.5).as_strided(shape, strides)


def _in_memory(child: nn.Module) -> nn.Module:
    """The child, its parameters made up where they are on no device."""
    if all(not parameter.is_meta for parameter in child.parameters()):
        return copy.deepcopy(child).cpu().float()
    made = copy.deepcopy(child).to_empty(device="cpu").float()
    for parameter in made.parameters():
        parameter.fill_(0.5)  # transformers may have switched nn.init off
    return made


def _expert(fused: nn.Module, layout: Layout, expert: int, x: Tensor) -> Tensor:
    """One expert, from the fused parameters."""

    def product(name: str, x: Tensor) -> Tensor:
        matrix = fused.get_parameter(name)[expert]
        bias = fused.get_parameter(f"{name}_bias")[expert] if layout.biased else None
        return nn.functional.linear(x, matrix.T if layout.transposed else matrix, bias)

    return product(layout.down, activation(fused, layout)(product(layout.up, x)))


Rows = dict[int, Tensor]
"""By expert, in order, the tokens that it gets (their places in the hidden states), none of them empty."""


def spread(
    hidden: Tensor,
    given: tuple[Tensor, ...],
    layout: Layout,
    norm: nn.Module | None,
    expert: Callable[[int, Tensor], Tensor],
    routed: Callable[[Rows], Rows] = lambda rows: rows,
) -> Tensor:
    """What the experts give for the hidden states, each expert called once with the tokens that are sent to it.

    given: as `Layout.arguments` says; expert: (number, tokens (n, width)) -> (n, width); routed: may look at the
    routing and change it.
    """
    if not given:
        return _spread_parts(hidden, layout, norm, expert, routed)
    index, weights = given
    k = index.shape[-1]
    places, flat = sorted_places(index, layout.experts), weights.reshape(-1)
    out = torch.zeros_like(hidden)
    own = {e: place // k for e, place in places.items()}
    rows = routed(own)
    for e, tokens in rows.items():
        y = expert(e, hidden[tokens])
        y = y if norm is None else norm(y)
        share = flat[places[e]] if rows is own else (weights * (index == e)).sum(-1)[tokens]
        out.index_add_(0, tokens, (y * share.unsqueeze(-1)).to(out.dtype))
    return out


def _spread_parts(
    hidden: Tensor,
    layout: Layout,
    norm: nn.Module | None,
    expert: Callable[[int, Tensor], Tensor],
    routed: Callable[[Rows], Rows],
) -> Tensor:
    parts = hidden.view(layout.experts, -1, hidden.shape[-1])
    sent = (parts != 0).any(-1)
    rows = routed({e: own.nonzero()[:, 0] for e, own in enumerate(sent) if own.any()})
    out = torch.zeros_like(parts)
    for e, tokens in rows.items():
        y = expert(e, parts[e, tokens])
        out[e] = out[e].index_copy(0, tokens, (y if norm is None else norm(y)).to(out.dtype))
    return out.flatten(0, 1)


def sorted_places(index: Tensor, experts: int) -> Rows:
    """By expert the places among the flattened (tokens, k) where it is chosen; numbers from `experts` on are none."""
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts).tolist()
    return {e: places for e, places in enumerate(order.split(counts)[:experts]) if len(places)}
