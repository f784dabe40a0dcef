"""transformers loads a compressed checkpoint through its public registration of quantization methods.

Works with transformers 4.57 and 5. Once loaded, the model is an ordinary one whose weights are plain floats, so the
quantizer withdraws: `.half()`, `.float()`, Trainer and PEFT treat it as any other, and `save_pretrained` writes the
config and the tensors that it has. Where factors have 8 or 4 bits it stays, so that Trainer refuses: these get no
gradients.
"""

import warnings
import weakref
from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from slimrank.checkpoint.schema import METHOD, VERSION, check_layers, quantization_config
from slimrank.errors import SlimrankError
from slimrank.forms import Embedding, Experts, compressed_layers, form_of, has_bits, link
from slimrank.forms.embedding import put_embedding
from slimrank.forms.experts import layout_of
from slimrank.forms.linear import is_linear
from slimrank.forms.quantized import QuantizedLinear


@register_quantization_config(METHOD)
class SlimrankConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json: which layers are compressed, and how."""

    def __init__(
        self, layers: dict[str, dict[str, Any]] | None = None, version: int = VERSION, quant_method: str = METHOD
    ) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]  # the registry's key, no member of HF's enum
        self.version = version
        self.layers = check_layers(version, layers)


class LiveConfig(QuantizationConfigMixin):
    """The `quantization_config` of a model in memory: made from its modules each time it is read or saved."""

    def __init__(self, model: nn.Module) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self._model = weakref.ref(model)

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """The compressed layers' entries by name, none once the model is gone."""
        model = self._model()
        return {} if model is None else compressed_layers(model)

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return quantization_config(self.layers)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LiveConfig":
        model = self._model()
        return LiveConfig(memo.get(id(model), model) if model is not None else nn.Module())

    def __reduce__(self) -> tuple[Any, ...]:
        return SlimrankConfig, (self.layers,)


def describe(model: Any) -> None:
    """Let the model's config say what its modules are, now and whenever it is saved."""
    if compressed_layers(model):
        model.config.quantization_config = LiveConfig(model)
    elif hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


@register_quantizer(METHOD)
class SlimrankQuantizer(HfQuantizer):
    """Puts the compressed layers' empty modules into the skeleton before transformers reads the weights."""

    quantization_config: SlimrankConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        put_layers(model, self.quantization_config.layers)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.is_trainable:
            del model.hf_quantizer
            model.is_quantized = False  # type: ignore[assignment]
        layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
        for name, layer in layers.items():
            layer.require_finite(name)
        warn_of_floats(layers)
        describe(model)
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """Saving writes the factors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether all factors are floats."""
        return not any(has_bits(entry) for entry in self.quantization_config.layers.values())


def warn_of_floats(layers: dict[str, QuantizedLinear]) -> None:
    """Warn, in a sentence, of layers whose numbers are made floats at every call."""
    slow = {name: why for name, layer in layers.items() if (why := layer.why_floats())}
    if slow:
        name, why = next(iter(slow.items()))
        others = f" and {len(slow) - 1} more" if len(slow) > 1 else ""
        warnings.warn(f"The numbers of {name}{others} are made floats at every call: {why}.", stacklevel=2)


_PLACES: dict[str, tuple[Any, str]] = {
    Experts.form: (layout_of, "fused experts"),
    Embedding.form: (lambda module: isinstance(module, nn.Embedding), "an embedding"),
}
"""By form, what is a place for it, and how that is called."""


def put_layers(model: nn.Module, layers: dict[str, dict[str, Any]]) -> None:
    """Put the compressed layers of these entries, without values, in the places of the dense ones."""
    for name, entry in layers.items():
        path = _path_in(model, name, entry["form"])
        dense: Any = model.get_submodule(path)
        if entry["form"] == Embedding.form:
            put_embedding(model, path, Embedding.shell(dense, entry))
            continue
        experts = entry["form"] == Experts.form
        layer = Experts.shell(dense, entry) if experts else form_of(name, entry).shell(dense, entry)
        model.set_submodule(path, layer)
    link(model)


def _path_in(model: nn.Module, name: str, form: str) -> str:
    """The path of the layer `name` in `model`, which may be the checkpoint's model with or without its head.

    form: of its entry, which says whether it is fused experts, an embedding or a linear.
    """
    fits, what = _PLACES.get(form, (is_linear, "a linear layer"))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    modules = dict(model.named_modules())
    for path in (name, name.removeprefix(prefix), prefix + name):
        if path in modules and fits(modules[path]):
            return path
    raise SlimrankError(
        f"The checkpoint compresses the layer {name}, which {type(model).__name__} doesn't have as {what}; "
        "load it with the model class and the transformers version that wrote it."
    )
