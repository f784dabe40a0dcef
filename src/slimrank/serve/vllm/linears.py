"""Compressed linears in vLLM.

What a device computes is found by sending row and column numbers through vLLM's own weight loaders, so that every way
in which vLLM splits a layer is followed. The input factors of a fused layer that are alike are one product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase

from slimrank.errors import SlimrankError
from slimrank.forms import Form, form_of
from slimrank.forms.quantized import QuantizedLinear
from slimrank.serve.shards import Dense, FusedParts
from slimrank.serve.vllm.kernels import few_bits
from slimrank.serve.vllm.loading import numbers, remove, stand_in


class SlimrankLinearMethod(LinearMethodBase):
    """Gathers the tensors of a layer's parts as vLLM reads them, then builds what this device computes."""

    def __init__(self, entries: dict[str, dict[str, Any] | None]) -> None:
        """entries: of the parts in order, by their own names; None of a dense one."""
        self.entries = entries

    @property
    def stand_ins(self) -> dict[str, bool]:
        """The names under which the parts store tensors in the checkpoint, and whether it is the bias.

        vLLM itself makes the parameter `bias`.
        """
        kinds = [form_of(name, entry) for name, entry in self.entries.items() if entry]
        stored = {"weight", *(name for kind in kinds for name in kind.stored_names())}
        biases = {kind.bias_name for kind in kinds} - {"bias"}
        return dict.fromkeys(sorted(stored), False) | dict.fromkeys(sorted(biases), True)

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """What stands in for the tensors of the checkpoint."""
        layer.rows = numbers(sum(output_partition_sizes), output_dim=0)
        layer.owners = numbers(sum(output_partition_sizes), output_dim=0)
        layer.columns = numbers(input_size_per_partition, input_dim=0)
        stand_in(layer, self.stand_ins, params_dtype)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Build the products from what was read, and let go of it."""
        device, dtype = layer.weight.device, layer.weight.dtype
        if hasattr(layer, "input_is_parallel"):
            layer.weight_loader(layer.columns, torch.arange(layer.input_size))
        else:
            layer.columns.copy_(torch.arange(layer.input_size))
        shards, parts = {}, self._parts(layer)
        for name, (number, part) in parts.items():
            if part.leader is not None and part.leader not in shards:
                raise SlimrankError(
                    f"vLLM doesn't compute {name} of {layer.prefix} together with {part.leader}, with which it shares "
                    f"a factor: {part.unshare}."
                )
            _send(layer, layer.rows, number, torch.arange(part.out_features))
            shards[name] = part.shard(layer.rows[layer.owners == number], layer.columns.data)
        layer.fused = FusedParts(shards, device, dtype, few_bits)
        remove(layer, self.stand_ins)
        del layer.rows, layer.owners, layer.columns

    def _parts(self, layer: Any) -> dict[str, tuple[int, Form | Dense]]:
        """The parts by name, in the layer's order, and each one's number among those that were read.

        Which part was read under which of vLLM's shard ids follows from where its loader puts each one's rows.
        """
        for number in range(len(layer.stored)):
            _send(layer, layer.owners, number, torch.full((_outputs(layer),), number))
        order = layer.owners.unique_consecutive().tolist()
        if -1 in order or len(order) != len(self.entries):
            raise SlimrankError(f"vLLM read no weights for a part of {layer.prefix}; fetch the checkpoint again.")
        stored = list(layer.stored.values())
        return {
            name: (number, _part(f"{name} of {layer.prefix}", layer.input_size, entry, stored[number]))
            for number, (name, entry) in zip(order, self.entries.items(), strict=True)
        }

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map x (..., in here) to y (..., out here)."""
        y: Tensor = layer.fused(x)
        return y if bias is None else y + bias


def _outputs(layer: Any) -> int:
    """How many outputs a layer has on all devices; of a head, without what fills its vocabulary up."""
    outputs: int = getattr(layer, "org_vocab_size", layer.output_size)
    return outputs


def _send(layer: Any, numbers: nn.Parameter, part: int, loaded: Tensor) -> None:
    """Load `loaded` as vLLM loads the rows of a part, given by its number among those that were read."""
    shard = list(layer.stored)[part]
    layer.weight_loader(numbers, loaded, *(() if shard is None else (shard,)))


def _part(name: str, inputs: int, entry: dict[str, Any] | None, tensors: dict[str, Tensor]) -> Form | Dense:
    """The linear `name`, whole, from its stored tensors; entry None means dense."""
    if entry is None:
        return Dense(tensors["weight"])
    form = form_of(name, entry).from_stored(name, inputs, entry, tensors)
    for factor in form.present_factors().values():
        if isinstance(factor, QuantizedLinear):
            factor.require_finite(name)
    return form
