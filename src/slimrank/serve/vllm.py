"""vLLM serves a compressed checkpoint as it lies on disk: a plugin that vLLM finds by its entry point.

vLLM fuses linears (q, k and v; gate and up) and splits them over devices. Each of a fused layer's parts may be dense or
of any form. What a device computes is found by sending row and column numbers through vLLM's own weight loaders, so
that every way in which vLLM splits a layer is followed. The input factors of a fused layer are one product.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from slimrank.checkpoint.schema import METHOD, check_layers
from slimrank.errors import SlimrankError
from slimrank.forms import Form, form_of
from slimrank.serve.shards import Dense, FusedParts, require_served


class SlimrankConfig(QuantizationConfig):
    """`quantization_config` of config.json, as vLLM reads it."""

    def __init__(self, layers: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.layers = layers

    @classmethod
    def get_name(cls) -> str:
        """The method's name in config.json."""
        return METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Any floating dtype."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Plain matrix products: any device."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Everything is in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SlimrankConfig":
        """Read the checkpoint's entry; a SlimrankError says what can't be."""
        layers = check_layers(config.get("version"), config.get("layers"))
        require_served(layers)
        return cls(layers)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Follow the model's renaming of its modules."""
        self.layers = hf_to_vllm_mapper.apply_dict(self.layers)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Our method for a linear with a compressed part in it, vLLM's own for a dense one."""
        if not isinstance(layer, LinearBase):
            return None
        parent, _, own = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(own, [own])
        entries = {part: self.layers.get(f"{parent}.{part}") for part in parts}
        if any(entries.values()):
            return SlimrankLinearMethod(entries)
        return UnquantizedLinearMethod()


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
        """Stand-ins under the checkpoint's names, which take whatever shape arrives."""
        layer.stored = {}
        layer.rows = _numbers(sum(output_partition_sizes), output_dim=0)
        layer.owners = _numbers(sum(output_partition_sizes), output_dim=0)
        layer.columns = _numbers(input_size_per_partition, input_dim=0)
        for name, is_bias in self.stand_ins.items():
            holder, _, last = name.rpartition(".")
            if holder and not hasattr(layer, holder):
                layer.add_module(holder, nn.Module())
            stand_in = nn.Parameter(torch.empty(0, dtype=params_dtype), requires_grad=False)
            loader = _pass_on(layer) if is_bias else _keep(layer, name)
            stand_in.weight_loader = loader  # type: ignore[attr-defined]
            layer.get_submodule(holder).register_parameter(last, stand_in)

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
        layer.fused = FusedParts(shards, device, dtype)
        for name in {name.partition(".")[0] for name in self.stand_ins} - {"weight"}:
            delattr(layer, name)
        del layer.stored, layer.rows, layer.owners, layer.columns

    def _parts(self, layer: Any) -> dict[str, tuple[int, Form | Dense]]:
        """The parts by name, in the layer's order, and each one's number among those that were read.

        Which part was read under which of vLLM's shard ids follows from where its loader puts each one's rows.
        """
        for number in range(len(layer.stored)):
            _send(layer, layer.owners, number, torch.full((layer.output_size,), number))
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


def _numbers(size: int, **attributes: int) -> nn.Parameter:
    """What vLLM's loaders take for a weight: `size` whole numbers on the CPU, -1 until they are loaded."""
    numbers = nn.Parameter(torch.full((size,), -1, dtype=torch.int64, device="cpu"), requires_grad=False)
    for name, value in attributes.items():
        setattr(numbers, name, value)
    return numbers


def _send(layer: Any, numbers: nn.Parameter, part: int, loaded: Tensor) -> None:
    """Load `loaded` as vLLM loads the rows of a part, given by its number among those that were read."""
    shard = list(layer.stored)[part]
    layer.weight_loader(numbers, loaded, *(() if shard is None else (shard,)))


def _part(name: str, inputs: int, entry: dict[str, Any] | None, tensors: dict[str, Tensor]) -> Form | Dense:
    """The linear `name`, whole, from its stored tensors; entry None means dense."""
    if entry is None:
        return Dense(tensors["weight"])
    return form_of(name, entry).from_stored(name, inputs, entry, tensors)


def _keep(layer: Any, name: str) -> Callable[..., None]:
    """A weight loader that keeps the tensor for later."""

    def load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
        if loaded.numel():  # the guard is empty
            layer.stored.setdefault(shard, {})[name] = loaded.clone()

    return load


def _pass_on(layer: Any) -> Callable[..., None]:
    """A weight loader that hands a part's bias to the layer's own, by its own loader."""

    def load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
        layer.weight_loader(layer.bias, loaded, *(() if shard is None else (shard,)))

    return load


def register() -> None:
    """Called by vLLM in each of its processes."""
    register_quantization_config(METHOD)(SlimrankConfig)
