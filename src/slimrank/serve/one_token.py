"""Faster kernels for one token at a time in bfloat16 on a CPU, where torch's choices are for many.

oneDNN, which torch takes for every product in bfloat16, reads the weights of a product with one row half as fast as
torch's own matrix-vector product. torch's flash attention takes several times as long for one query as two batched
products. Of plain sums torch.compile makes loops that are as fast as the one, faster than the other, and cost nothing
to call, which many thin products feel.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from slimrank.model.modules import set_module

ATTENTION = "slimrank"
"""The name under which transformers knows the attention."""


def use_one_token_kernels(model: PreTrainedModel) -> None:
    """Let every nn.Linear of `model`, and its attention where that is sdpa, use them where they apply, in place."""
    use_one_token_products(model)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)


def use_one_token_products(model: nn.Module) -> None:
    """Let every nn.Linear inside `model` choose its kernel by the number of rows, in place."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            set_module(model, name, Linear.of(module))


class Linear(nn.Linear):
    """An nn.Linear that chooses its kernel by the number of rows."""

    plain = True
    """Its output is W x + b and nothing else (see forms.linear.plain_weight)."""

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """One with the very parameters of `linear`."""
        own = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        own.weight, own.bias = linear.weight, linear.bias
        return own.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        return product(x, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times weight (out, in) transposed, plus bias (out,): (..., out)."""
    if not (_applies(x) and x.numel() == x.shape[-1]):
        return linear(x, weight, bias)
    return (sums if torch.compiler.is_compiling() else row)(x, weight, bias)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As transformers' sdpa attention: query (batch, heads, n, width) to (batch, n, heads, width)."""
    special = any(options.get(name) is not None for name in ("position_bias", "cache", "s_aux", "softcap"))
    if query.shape[2] != 1 or special or not _applies(query):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    return attend(query, key, value, attention_mask, scale), None


def _applies(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.is_grad_enabled()


def row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`product` of one row, by torch's own matrix-vector product.

    The switch is the process's: another thread's product meanwhile may take another kernel, not another outcome.
    """
    switch: Any = torch.backends.mkldnn
    was, switch.enabled = switch.enabled, False
    try:
        return linear(x, weight, bias)
    finally:
        switch.enabled = was


def sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`product` of one row as plain sums, in float32."""
    y = (settled(x.reshape(-1)) * weight.float()).sum(-1)
    return (y if bias is None else y + bias).to(x.dtype).view(*x.shape[:-1], -1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + mask) v for one query of each sequence, with the softmax in float32.

    query (batch, heads, 1, width); key, value (batch, key heads, m, width); mask broadcasts to (batch, heads, 1, m) and
    is True where to look, or is added. Returns (batch, 1, heads, width).
    """
    batch, heads, _, width = query.shape
    shared, m = key.shape[1], key.shape[2]
    scores = batched((query * scale).reshape(batch * shared, -1, width), key.reshape(-1, m, width).transpose(1, 2))
    scores = scores.float().view(batch, heads, 1, m)
    if mask is not None:
        mask = mask[..., :m]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    shares = scores.softmax(-1).to(value.dtype).view(batch * shared, -1, m)
    found = batched(shares, value.reshape(-1, m, value.shape[-1]))
    return found.to(value.dtype).view(batch, 1, heads, -1)


def batched(a: Tensor, b: Tensor) -> Tensor:
    """a (n, k, w) @ b (n, w, m): (n, k, m), of small k; in float32 and as plain sums for torch.compile's loops."""
    if torch.compiler.is_compiling():
        return (settled(a)[..., None] * b.float()[:, None]).sum(-2)
    return a @ b


def settled(x: Tensor) -> Tensor:
    """x in float32; asking for its strides has torch.compile compute it once, and not in every turn of a loop."""
    x = x.float().contiguous()
    return x.as_strided(x.shape, x.stride())


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
