"""A dense linear layer read the same way whether it is an nn.Linear or a transformers Conv1D."""

import copy
import warnings
from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from slimrank.errors import SlimrankError

_LINEAR: dict[type, bool] = {nn.Linear: True, Conv1D: True}


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a dense linear layer that can be compressed: one whose output is W x + b and nothing else."""
    kind = type(module)
    if kind not in _LINEAR:
        dense = next((one for one in (nn.Linear, Conv1D) if issubclass(kind, one)), None)
        _LINEAR[kind] = dense is not None and (kind.forward is dense.forward or _computes_as(module, dense))
    return _LINEAR[kind]


@torch.no_grad()
def _computes_as(module: nn.Module, dense: type[nn.Module]) -> bool:
    """Whether a module of a class derived from `dense` gives what `dense` itself does, tried with small weights."""
    small = copy.copy(module)
    x = torch.linspace(-1, 2, 12).view(2, 3, 2)
    weight = torch.tensor([[0.5, -1.0], [2.0, 0.25], [1.5, 1.0]])
    weights = {"weight": nn.Parameter(weight.T.contiguous() if dense is Conv1D else weight)}
    bias = None if module._parameters.get("bias") is None else torch.tensor([1.0, -2.0, 3.0])
    small._parameters = {**weights, "bias": None if bias is None else nn.Parameter(bias)}
    small._forward_hooks, small._forward_pre_hooks = OrderedDict(), OrderedDict()
    if dense is Conv1D:
        small.__dict__["nf"] = 3
    try:
        found = small(x)
    except Exception:  # the class's own code raises anything where it is no plain linear
        return False
    expected = nn.functional.linear(x, weight, bias)
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


def weight_of(dense: nn.Module) -> Tensor:
    """The weight W of a dense linear as (out, in), so that y = W x + b; a Conv1D stores it transposed."""
    if isinstance(dense, nn.Linear):
        return dense.weight
    if isinstance(dense, Conv1D):
        return dense.weight.T
    raise SlimrankError(f"A {type(dense).__name__} can't be compressed; choose nn.Linear or Conv1D layers only.")


def plain_weight(module: object) -> Tensor | None:
    """The weight (out, in) of a module that gives just W x + b: an nn.Linear, or one whose class says `plain`."""
    kind, dense = type(module), cast(Any, module)
    return dense.weight if kind is nn.Linear or getattr(kind, "plain", False) else None


def shape_of(dense: nn.Module) -> tuple[int, int]:
    """The shape (out, in) of a dense linear's weight."""
    out_features, in_features = weight_of(dense).shape
    return out_features, in_features


def bias_of(dense: nn.Module) -> Tensor | None:
    """The bias (out,) of a dense linear, detached, where it has one."""
    bias = getattr(dense, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def linear_with(weight: Tensor) -> nn.Linear:
    """A linear without bias whose weight is W (m, n) itself, on any device and of any size, not trained."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        made = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


@torch.no_grad()
def permute_outputs(dense: nn.Module, order: Tensor) -> None:
    """Let a dense linear's output i be what output order[i] was, order (out,) int64, in place."""
    weight, bias = weight_of(dense), bias_of(dense)
    weight.copy_(weight[order])
    if bias is not None:
        bias.copy_(bias[order])


@torch.no_grad()
def permute_inputs(dense: nn.Module, order: Tensor) -> None:
    """Let a dense linear's input i be what input order[i] was, order (in,) int64, in place."""
    weight = weight_of(dense)
    weight.copy_(weight[:, order])
