"""What stands in for a layer's tensors while vLLM loads them, and where its own loaders put which rows and columns."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def numbers(size: int, **attributes: int) -> nn.Parameter:
    """What vLLM's loaders take for a weight: `size` whole numbers on the CPU, -1 until they are loaded."""
    made = nn.Parameter(torch.full((size,), -1, dtype=torch.int64, device="cpu"), requires_grad=False)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def stand_in(layer: Any, names: Mapping[str, bool], dtype: torch.dtype) -> None:
    """Parameters under the checkpoint's names, which take whatever shape arrives; names: whether it is the bias."""
    layer.stored = {}
    for name, is_bias in names.items():
        holder, _, last = name.rpartition(".")
        if holder and not hasattr(layer, holder):
            layer.add_module(holder, nn.Module())
        parameter = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
        parameter.weight_loader = _pass_on(layer) if is_bias else _keep(layer, name)  # type: ignore[attr-defined]
        layer.get_submodule(holder).register_parameter(last, parameter)


def remove(layer: Any, names: Mapping[str, bool]) -> None:
    """Remove what stood in, but for the guard, and let go of what was read."""
    for name in {name.partition(".")[0] for name in names} - {"weight"}:
        delattr(layer, name)
    del layer.stored


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
