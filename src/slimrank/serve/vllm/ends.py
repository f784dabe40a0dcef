"""An embedding of few bits in vLLM, and the head that is tied to it: one table for both."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from slimrank.errors import SlimrankError
from slimrank.forms.quantized import STORED, QuantizedLinear, group_of, picked
from slimrank.serve.few_bits import kernels_for, product_of, why_floats
from slimrank.serve.vllm.loading import numbers, remove, stand_in

STAND_INS = dict.fromkeys(("weight", *(f"table.{name}" for name in STORED)), False)


class EmbeddingMethod(QuantizeMethodBase):
    """Looks tokens up in the stored numbers, which a head that is tied to the embedding multiplies by."""

    def __init__(self, name: str, entry: dict[str, Any]) -> None:
        self.name, self.entry, self.tied = name, entry, False

    def create_weights(
        self, layer: Any, input_size_per_partition: int, output_partition_sizes: list[int], *sizes: int,
        params_dtype: torch.dtype, **extra_weight_attrs: Any,
    ) -> None:  # fmt: skip
        """What stands in for the tensors of the checkpoint."""
        layer.rows = numbers(sum(output_partition_sizes), output_dim=0)
        stand_in(layer, STAND_INS, params_dtype)

    def process_weights_after_loading(self, layer: Any) -> None:
        """The rows of the table that this device holds; what fills the vocabulary up is a copy of the first."""
        device, dtype = layer.weight.device, layer.weight.dtype
        read = {name.partition(".")[2]: tensor for name, tensor in layer.stored.get(None, {}).items()}
        table = self.table(layer.org_vocab_size, layer.embedding_dim, read)
        layer.weight_loader(layer.rows, torch.arange(layer.org_vocab_size))
        table = picked(table, layer.rows.data)
        remove(layer, STAND_INS)
        del layer.rows
        layer.table = table.to(device=device, dtype=dtype)
        layer.kernels = kernels_for(layer.table.scale)
        why = why_floats(layer.table, layer.kernels) if self.tied else None
        if why is not None:
            warnings.warn(
                f"The head, which is tied to {self.name}, makes its numbers floats at every call: {why}.",
                stacklevel=2,
            )

    def table(self, rows: int, width: int, tensors: dict[str, Tensor]) -> QuantizedLinear:
        """The whole table, from its stored tensors; a SlimrankError says that they are not those of the entry."""
        bits = self.entry["bits"]
        with torch.device("meta"):
            table = QuantizedLinear(nn.Linear(width, rows, bias=False), bits, group_of(bits, self.entry.get("group")))
        try:
            table.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise SlimrankError(
                f"The tensors of the embedding {self.name} are not those of its entry {self.entry}; fetch the "
                "checkpoint again."
            ) from error
        table.require_finite(self.name)
        return table

    def embedding(self, layer: Any, ids: Tensor) -> Tensor:
        """The rows of ids (...,): (..., width)."""
        rows: Tensor = layer.table.rows(ids.reshape(-1))
        return rows.view(*ids.shape, layer.embedding_dim)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The logits (..., vocabulary here) of x (..., width), by the head that is tied to the embedding."""
        y = product_of(x, layer.table, layer.kernels)
        return y if bias is None else y + bias


class HeadMethod(UnquantizedEmbeddingMethod):
    """A head of floats, until the model ties it to the embedding of few bits: that one then gives the logits."""

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """The embedding itself."""
        embed_tokens.quant_method.tied = True
        return embed_tokens
