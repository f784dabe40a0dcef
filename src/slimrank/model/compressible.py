"""A model as compression sees it: blocks, and the dense linears in them that factors will replace."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property

from torch import nn
from transformers import PreTrainedModel

from slimrank.forms.experts import place_of
from slimrank.forms.linear import is_linear, shape_of
from slimrank.model.decoder import Decoder, Filter
from slimrank.model.modules import set_module
from slimrank.model.units import Unit


def ends_of(model: PreTrainedModel) -> tuple[nn.Embedding | None, nn.Module | None]:
    """The module that looks tokens up, where it is a plain table, and the one that gives the logits."""
    embedding = None
    with suppress(NotImplementedError):  # a model that does not say which module it is
        embedding = model.get_input_embeddings()
    return (embedding if isinstance(embedding, nn.Embedding) else None), model.get_output_embeddings()


def plain_ends(model: PreTrainedModel) -> dict[str, nn.Module]:
    """A dense model's embedding and, unless it is tied to it, its head, by name, where these are plain ones."""
    embedding, head = ends_of(model)
    tied = embedding is not None and getattr(head, "weight", None) is embedding.weight
    found = [embedding, head if head is not None and is_linear(head) and not tied else None]
    return named(model, [module for module in found if module is not None])


def named(model: nn.Module, modules: Collection[nn.Module]) -> dict[str, nn.Module]:
    """These modules of the model, by name."""
    return {name: one for name, one in model.named_modules() if any(one is own for own in modules)}


class Compressible:
    """The dense linears stay at hand here, also after factors took their places in the model.

    blocks: per decoder block, its dense linears by full name.
    """

    def __init__(self, decoder: Decoder, blocks: list[dict[str, nn.Module]] | None = None) -> None:
        """blocks: by default all linears of all blocks."""
        self.decoder = decoder
        self.blocks = decoder.linears() if blocks is None else blocks
        self.outside  # noqa: B018 (while they are plain)

    @classmethod
    def of(cls, decoder: Decoder, chosen: Filter | None = None) -> "Compressible":
        """The linears that the filter (name, module) -> bool chooses."""
        return cls(decoder, decoder.linears(chosen))

    @cached_property
    def linears(self) -> dict[str, nn.Module]:
        """Every dense linear by name, in the model's order."""
        return {name: module for block in self.blocks for name, module in block.items()}

    @cached_property
    def ends(self) -> dict[str, nn.Module]:
        """The dense model's embedding and head; see plain_ends."""
        return plain_ends(self.decoder.model)

    @cached_property
    def outside(self) -> dict[str, nn.Module]:
        """The ends, and a head that is tied to the embedding."""
        head = ends_of(self.decoder.model)[1]
        return self.ends | named(self.decoder.model, [] if head is None else [head])

    @cached_property
    def units(self) -> dict[str, Unit]:
        """Every linear as a unit of its own, by name."""
        return {
            name: Unit(
                (name,),
                index,
                self.decoder.role(name),
                (shape_of(module),),
                (place_of(self.decoder.model, name) or (None,))[0],
            )
            for index, block in enumerate(self.blocks)
            for name, module in block.items()
        }

    @contextmanager
    def replaced(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Inside, other modules are in the places of linears."""
        with replaced(self.decoder.model, modules):
            yield

    @contextmanager
    def as_dense(self, linears: dict[str, nn.Module] | None = None) -> Iterator[None]:
        """Inside it is the dense model again, norms and biases too; linears: only these, all by default."""
        dense = {**self.linears, **self.outside} if linears is None else linears
        with self.replaced(dense), self.decoder.weights.dense_vectors():
            yield


@contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, other modules are in the places of those of the same names, which come back."""
    before = {name: model.get_submodule(name) for name in modules}
    for name, module in modules.items():
        set_module(model, name, module)
    try:
        yield
    finally:
        for name, module in before.items():
            set_module(model, name, module)
