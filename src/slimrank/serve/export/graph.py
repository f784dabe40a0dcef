"""The decoder as one graph with its key-value cache as inputs and outputs, named as Optimum names them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache, PreTrainedModel


class WithCache(nn.Module):
    """(input_ids, attention_mask, position_ids, past keys and values) -> (logits, present keys and values)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """input_ids, position_ids (batch, n); attention_mask (batch, past + n); past: keys, values of every layer."""
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        logits = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).logits
        return (logits, *keys_and_values(cache))


def keys_and_values(cache: Any) -> list[Tensor]:
    """Those of every layer, in turn."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def names(layers: int) -> tuple[list[str], list[str]]:
    """The graph's inputs and outputs."""
    both = [(number, kind) for number in range(layers) for kind in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}.{kind}" for n, kind in both)]
    return inputs, ["logits", *(f"present.{n}.{kind}" for n, kind in both)]


def example(model: PreTrainedModel) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of WithCache to trace with, and which of their sizes may change."""
    batch, tokens, past = 2, 3, 4
    ids = torch.zeros(batch, past, dtype=torch.long)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    tensors = keys_and_values(cache)
    positions = torch.arange(past, past + tokens).expand(batch, tokens).contiguous()
    arguments = (ids.new_zeros(batch, tokens), ids.new_ones(batch, past + tokens), positions, tensors)
    b, n, p, total = Dim.DYNAMIC, Dim.DYNAMIC, Dim.DYNAMIC, Dim.DYNAMIC
    return arguments, ({0: b, 1: n}, {0: b, 1: total}, {0: b, 1: n}, [{0: b, 2: p} for _ in tensors])


def empty_past(model: PreTrainedModel) -> list[Tensor]:
    """The past of a sequence that hasn't begun (1, heads, 0, width), key and value of every layer."""
    arguments, _ = example(model)
    return [tensor[:1, :, :0].contiguous() for tensor in arguments[3]]
