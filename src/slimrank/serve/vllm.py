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
from slimrank.forms import Joint
from slimrank.forms.quantized import dequantize
from slimrank.serve.shards import FusedParts, rows_of

_FACTORS = ("down", "up", "pivots", "others")
_TENSORS = (
    "weight",
    "chosen",
    "kept",
    "up.bias",
    *(f"{name}.{part}" for name in _FACTORS for part in ("weight", "scale")),
)


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
        return cls(check_layers(config.get("version"), config.get("layers")))

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
        for name in _TENSORS:
            holder, _, last = name.rpartition(".")
            if holder and not hasattr(layer, holder):
                layer.add_module(holder, nn.Module())
            stand_in = nn.Parameter(torch.empty(0, dtype=params_dtype), requires_grad=False)
            stand_in.weight_loader = _keep(layer, name)  # type: ignore[attr-defined]
            layer.get_submodule(holder).register_parameter(last, stand_in)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Build the products from what was read, and let go of it."""
        device, dtype = layer.weight.device, layer.weight.dtype
        layer.stored = {shard: _floats(tensors, layer.input_size) for shard, tensors in layer.stored.items()}
        total = {shard: rows_of(tensors) for shard, tensors in layer.stored.items()}
        for number, (shard, rows) in enumerate(total.items()):
            where = () if shard is None else (shard,)
            layer.weight_loader(layer.rows, torch.arange(rows), *where)
            layer.weight_loader(layer.owners, torch.full((rows,), number), *where)
        columns = next(filter(None, map(_columns_of, layer.stored.values())))
        if hasattr(layer, "input_is_parallel"):
            layer.weight_loader(layer.columns, torch.arange(columns))
        else:
            layer.columns.copy_(torch.arange(columns))
        if (layer.rows < 0).any():
            raise SlimrankError(f"vLLM read no weights for a part of {layer.prefix}; fetch the checkpoint again.")
        parts = [(tensors, layer.rows[layer.owners == number]) for number, tensors in enumerate(layer.stored.values())]
        order = layer.owners.unique_consecutive().tolist()
        self._place_joint([parts[number][0] for number in order], layer.prefix)
        layer.fused = FusedParts([parts[number] for number in order], layer.columns.data, device, dtype)
        for name in {name.partition(".")[0] for name in _TENSORS} - {"weight"}:
            delattr(layer, name)
        del layer.stored, layer.rows, layer.owners, layer.columns

    def _place_joint(self, parts: list[dict[str, Tensor]], prefix: str) -> None:
        """Let the joint parts, in the layer's order, know where their pivots begin.

        Raises:
            SlimrankError: if their leader is not in this layer, before them.
        """
        seen = set[str]()
        for (name, entry), tensors in zip(self.entries.items(), parts, strict=False):
            if entry and entry["form"] == Joint.form:
                if entry.get("leader", name) not in {*seen, name}:
                    raise SlimrankError(
                        f"vLLM doesn't fuse {name} of {prefix} behind {entry['leader']}, whose pivots it shares: "
                        "compress with form.joint=false."
                    )
                tensors["first"] = torch.tensor(entry["first"])
                seen.add(name)

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


def _keep(layer: Any, name: str) -> Callable[..., None]:
    """A weight loader that keeps the tensor for later; a bias goes to the layer's own, by its own loader."""

    def load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
        if name == "up.bias":
            layer.weight_loader(layer.bias, loaded, *(() if shard is None else (shard,)))
        elif loaded.numel():  # the guard is empty
            layer.stored.setdefault(shard, {})[name] = loaded.clone()

    return load


def _floats(tensors: dict[str, Tensor], inputs: int) -> dict[str, Tensor]:
    """The tensors with quantized factors as floats: vLLM serves them at full width."""
    kept = len(tensors.get("kept", ()))
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(".scale")}
    for name in _FACTORS:
        if f"{name}.scale" in tensors:
            width = kept + len(tensors["down.weight"]) if name == "up" else inputs - kept  # matters in 4 bits alone
            found[f"{name}.weight"] = dequantize(tensors[f"{name}.weight"], tensors[f"{name}.scale"], width)
    return found


def _columns_of(tensors: dict[str, Tensor]) -> int | None:
    """How many inputs a part has; None of one without an input factor of its own."""
    name = next((name for name in ("pivots.weight", "down.weight", "weight") if name in tensors), None)
    return None if name is None else tensors[name].shape[1] + len(tensors.get("kept", ()))


def register() -> None:
    """Called by vLLM in each of its processes."""
    register_quantization_config(METHOD)(SlimrankConfig)
