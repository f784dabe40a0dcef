"""Two factors brought to like scale, so that a narrow dtype holds both."""

import torch
from torch import Tensor


@torch.no_grad()
def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """left (m, r) and right (r, n) with the same product to the bit, each column of left as long as its row of right.

    As long to a factor of two: the scales are powers of two, which round nothing.
    """
    long, short = left.norm(dim=0).double(), right.norm(dim=1).double()
    ratio = torch.where((long > 0) & (short > 0), short / long, 1.0)
    scale = torch.exp2((ratio.log2() / 2).round())
    return left * scale.to(left.dtype), right / scale.to(right.dtype).unsqueeze(1)
