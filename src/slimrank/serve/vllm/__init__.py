"""vLLM serves a compressed checkpoint as it lies on disk: a plugin that vLLM finds by its entry point.

vLLM fuses linears (q, k and v; gate and up) and splits them over devices. Each of a fused layer's parts may be dense or
of any form. Numbers of few bits stay what they are, in vLLM's own kernels where these take them.
"""

from typing import Any

import torch
from torch import nn
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from slimrank.checkpoint.schema import METHOD, check_layers
from slimrank.errors import SlimrankError
from slimrank.forms import Embedding
from slimrank.serve.shards import require_served
from slimrank.serve.vllm.ends import EmbeddingMethod, HeadMethod
from slimrank.serve.vllm.linears import SlimrankLinearMethod


class SlimrankConfig(QuantizationConfig):
    """`quantization_config` of config.json, as vLLM reads it."""

    def __init__(self, layers: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.layers = layers
        self.embedded = False

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

    @property
    def embedding(self) -> str | None:
        """The name of the embedding where it has few bits."""
        return next((name for name, entry in self.layers.items() if entry["form"] == Embedding.form), None)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Our method for a layer with a compressed part in it, vLLM's own for a dense one.

        Some of vLLM's models don't name their embedding.
        """
        parent, _, own = prefix.rpartition(".")
        if isinstance(layer, ParallelLMHead):
            if prefix in self.layers:
                return SlimrankLinearMethod({own: self.layers[prefix]})
            return HeadMethod() if self.embedding else None
        if isinstance(layer, VocabParallelEmbedding):
            name = self.embedding
            if name is None or prefix not in ("", name):
                return None
            self.embedded = True
            return EmbeddingMethod(name, self.layers[name])
        if not isinstance(layer, LinearBase):
            return None
        self.require_embedded(prefix)
        parts = self.packed_modules_mapping.get(own, [own])
        entries = {part: self.layers.get(f"{parent}.{part}") for part in parts}
        if any(entries.values()):
            return SlimrankLinearMethod(entries)
        return UnquantizedLinearMethod()

    def require_embedded(self, name: str) -> None:
        """Raise a SlimrankError where the model has come to the linear `name` without asking for its embedding."""
        few = self.embedding
        if few is None or self.embedded or not name.startswith(few.rpartition(".")[0]):
            return
        if get_pp_group().is_first_rank:
            raise SlimrankError(
                f"vLLM's model has no place for whole numbers in its embedding, and {few} is compressed: serve with "
                "transformers, or make a dense checkpoint by slimrank export --to dense."
            )


def register() -> None:
    """Called by vLLM in each of its processes."""
    register_quantization_config(METHOD)(SlimrankConfig)
