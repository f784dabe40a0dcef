"""Entries of a tensor's last axis, in the order asked for."""

import torch
from torch import Tensor


def take_last(x: Tensor, index: Tensor) -> Tensor:
    """x (..., n) at these places of its last axis (k,)."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # there torch's index_select copies one number at a time: 3 to 25 times slower from the second row on
        return x.gather(-1, index.long().expand(*x.shape[:-1], -1))
    return x.index_select(-1, index)
