"""The embedding in whole numbers of few bits, and the head that is tied to it."""

import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms.base import Form
from slimrank.forms.linear import bias_of
from slimrank.forms.outputs import Outputs
from slimrank.forms.quantized import QuantizedLinear, group_of
from slimrank.forms.stored import stored

Entry = dict[str, Any]
TIES = ("all_tied_weights_keys", "_tied_weights_keys")
"""The attributes of a model in which transformers keeps which tensors are tied."""


class Embedding(nn.Module):
    """Looks tokens up in `table`, of which row v (width,) is token v's, as the module it stands for looks them up.

    Its entry is {"form": "embedding", "bits": 8}, "group" as for any layer. An empty buffer `weight` is the guard (see
    Form). A head that is tied to it (see TiedHead) multiplies by the same numbers.
    """

    form: ClassVar[str] = "embedding"
    weight: Tensor

    def __init__(self, plain: nn.Embedding, bits: int, group: int | None = None) -> None:
        """plain: the module in whose place this stands; what else it does with a token's row is kept."""
        super().__init__()
        weight = plain.weight
        self.num_embeddings, self.embedding_dim = weight.shape
        self.bits, self.per_scale = bits, group_of(bits, group)
        with torch.device("meta"):
            shape = nn.Linear(self.embedding_dim, self.num_embeddings, bias=False, dtype=weight.dtype)
        self.table = QuantizedLinear(shape, bits, self.per_scale).to_empty(device=weight.device)
        self.inner, self.padding_idx = without_weight(plain), plain.padding_idx
        self.register_buffer("weight", weight.detach().new_empty(0))

    @classmethod
    def shell(cls, plain: nn.Embedding, entry: Entry) -> Self:
        """An uninitialised module in the place of `plain`, on its device and in its dtype."""
        return cls(plain, entry["bits"], entry.get("group"))

    @staticmethod
    def check(name: str, entry: Entry) -> None:
        """Raise a SlimrankError where `entry` of the embedding `name` can't be read."""
        if "bits" not in entry:
            raise SlimrankError(f"The embedding {name} has no bits; give 8, 4, 3 or 2, or leave its entry out.")
        Form.check_bits(name, entry["bits"], entry.get("group"))

    def entry(self) -> Entry:
        """The layer's JSON, from which `shell` builds the same module again."""
        group = {} if self.per_scale is None else {"group": self.per_scale}
        return {"form": self.form, "bits": self.bits, **group}

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of ids (...,): (..., width)."""
        rows = self.table.rows(ids.reshape(-1))
        if type(self.inner) is nn.Embedding:
            return rows.view(*ids.shape, self.embedding_dim)
        lookup = copy.copy(self.inner)
        lookup._buffers = {name: buffer for name, buffer in self.inner._buffers.items() if name != "weight"}
        lookup._parameters = {"weight": nn.Parameter(rows, requires_grad=False)}
        found: Tensor = lookup(torch.arange(ids.numel(), device=ids.device).view(ids.shape))
        return found

    @torch.no_grad()
    def plain(self, dtype: torch.dtype) -> nn.Embedding:
        """A module of the class that this stands for, with the numbers times their scales."""
        made: nn.Embedding = copy.deepcopy(self.inner)
        del made._buffers["weight"]
        made.padding_idx = self.padding_idx
        made.weight = nn.Parameter(self.table.matrix(torch.float64).to(dtype))
        return made

    def extra_repr(self) -> str:
        """The shape, as nn.Embedding prints it."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class TiedHead(nn.Module):
    """y = W x + b with W the numbers of the embedding, which alone stores them."""

    embedding: Embedding

    def __init__(self, embedding: Embedding, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "embedding", embedding)
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., width) to y (..., vocabulary)."""
        y: Tensor = self.embedding.table(x)
        return y if self.bias is None else y + self.bias

    def outputs(self) -> Outputs | None:
        """y = W x + b, as Form.outputs says it: all inputs kept."""
        matrix = stored(self.embedding.table)
        return None if matrix is None else Outputs(None, matrix, bias=self.bias, kept=self.in_features)


def without_weight(plain: nn.Embedding) -> nn.Embedding:
    """A copy with an empty weight that isn't stored, and no padding index, which names a row of the weight."""
    bare = copy.copy(plain)
    bare.__dict__.pop("_hf_hook", None)
    bare._parameters = {}
    device = "cpu" if plain.weight.is_meta else plain.weight.device  # transformers 4 leaves what it can't load there
    empty = torch.empty(0, plain.embedding_dim, dtype=plain.weight.dtype, device=device)
    bare._buffers = {**plain._buffers, "weight": empty}
    bare._non_persistent_buffers_set = {*plain._non_persistent_buffers_set, "weight"}
    bare.padding_idx = None
    return bare


def put_embedding(model: Any, name: str, layer: Embedding) -> None:
    """Put `layer` in the place of the embedding `name`, and where the model's head is tied to it, a tied head."""
    plain, head = model.get_submodule(name), model.get_output_embeddings()
    tied = head is not None and isinstance(head, nn.Linear) and is_tied(model, plain, head)
    model.set_submodule(name, layer)
    if tied:
        place = next(path for path, module in model.named_modules() if module is head)
        model.set_submodule(place, TiedHead(layer, head.bias))
        untie(model, f"{place}.weight")


def is_tied(model: Any, plain: nn.Embedding, head: nn.Linear) -> bool:
    """Whether the head multiplies by this embedding's weight, once the model's weights are tied."""
    if head.weight is plain.weight:
        return True
    asked = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    return asked and plain is model.get_input_embeddings() and head.weight.is_meta


def untie(model: Any, key: str) -> None:
    """Let transformers no longer tie the tensor `key`, which is no more."""
    for name in TIES:
        known = getattr(model, name, None)
        if isinstance(known, dict):
            setattr(model, name, {target: source for target, source in known.items() if target != key})
        elif known is not None:
            setattr(model, name, [target for target in known if target != key])


def dense_head(head: TiedHead, like: nn.Linear, embedding: nn.Embedding) -> nn.Linear:
    """`like`, a linear as the architecture has it in the head's place, with the embedding's very weight."""
    like.weight = embedding.weight
    if head.bias is not None:
        like.bias = nn.Parameter(bias_of(head))  # type: ignore[arg-type]
    return like
