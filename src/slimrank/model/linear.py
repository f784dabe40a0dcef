"""A dense linear layer read the same way whether it is an nn.Linear or a transformers Conv1D."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from slimrank.errors import SlimrankError


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a dense linear layer that can be compressed: one whose output is W x + b and nothing else."""
    kind = type(module)
    return any(issubclass(kind, dense) and kind.forward is dense.forward for dense in (nn.Linear, Conv1D))


def weight_of(dense: nn.Module) -> Tensor:
    """The weight W of a dense linear as (out, in), so that y = W x + b; a Conv1D stores it transposed."""
    if isinstance(dense, nn.Linear):
        return dense.weight
    if isinstance(dense, Conv1D):
        return dense.weight.T
    raise SlimrankError(f"A {type(dense).__name__} can't be compressed; choose nn.Linear or Conv1D layers only.")


def shape_of(dense: nn.Module) -> tuple[int, int]:
    """The shape (out, in) of a dense linear's weight."""
    out_features, in_features = weight_of(dense).shape
    return out_features, in_features


def bias_of(dense: nn.Module) -> Tensor | None:
    """The bias (out,) of a dense linear, detached, where it has one."""
    bias = getattr(dense, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


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
