"""The first model of a comparison: what it makes of the texts, so that others' predictions can be held against it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.calibrate.stream import Home
from slimrank.model.compressible import replaced
from slimrank.model.decoder import Decoder
from slimrank.model.modules import attached, evaluating
from slimrank.numerics.losses import divergences
from slimrank.runtime.memory import Room


@dataclass
class Read:
    """Batches of ids (windows, tokens), and what the last block gave on each, (windows, tokens, width)."""

    ids: Sequence[Tensor]
    hidden: list[Tensor] = field(default_factory=list)


class Reference:
    """Keeps what the model's last block gives on each text, from which its head makes the logits again.

    The logits themselves are as many times larger as the vocabulary is larger than the width. The model's vectors and
    its head are those that it has now, whatever refiners make of them later.
    """

    def __init__(self, decoder: Decoder, room: Room | None = None) -> None:
        """room: for a text's states; what is more goes to files.

        Raises:
            SlimrankError: if the model cannot be followed a block at a time.
        """
        self.decoder, self._room = decoder, room or Room()
        self._read: dict[str, Read] = {}
        head = decoder.model.get_output_embeddings()
        self._head = {name: module for name, module in decoder.model.named_modules() if module is head}
        decoder.enter(torch.zeros((1, 2), dtype=torch.int64, device=decoder.device))

    @contextmanager
    def reading(self, source: str, batches: Sequence[Tensor]) -> Iterator[None]:
        """The model, which is the dense one, runs over the batches of this text inside."""
        read = self._read[source] = Read(batches)
        home: list[Home] = []

        def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if not home:
                home.append(Home(self._room, hidden.nbytes * len(batches), hidden.device))
            read.hidden.append(home[0].put(hidden))

        with attached([self.decoder.blocks[-1].register_forward_hook(keep)]):
            yield

    def has_read(self, source: str, ids: Tensor, vocabulary: int) -> bool:
        """Whether it read the same windows, (windows, tokens), and predicts as many tokens."""
        read = self._read.get(source)
        return (
            read is not None
            and vocabulary == self.decoder.model.config.get_text_config().vocab_size
            and torch.equal(torch.cat(list(read.ids)), ids)
        )

    def batch_size(self, source: str) -> int:
        """How many windows of the text it read at a time."""
        return len(self._read[source].ids[0])

    def divergences(self, source: str, batch: int, logits: Tensor) -> Tensor:
        """KL(first || other) in nats a token of each window, (windows,) float64 on the CPU, from the other's logits."""
        decoder, read = self.decoder, self._read[source]
        ids, hidden = (part[batch].to(decoder.device) for part in (read.ids, read.hidden))
        with evaluating(decoder.model), decoder.weights.dense_vectors(), replaced(decoder.model, self._head):
            own = decoder.head(ids, hidden)
        return divergences(logits, own.to(logits.device)).cpu()

    def let_go(self) -> None:
        """Free the weights of the model's blocks, which nothing will ask for any more."""
        for module in self.decoder.blocks.modules():
            for name, parameter in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(_empty(parameter), requires_grad=False)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = _empty(buffer)


def reference_of(model: PreTrainedModel, room: Room | None = None) -> Reference:
    """Of a model that is in memory as a whole, whose training flags stay as they are."""
    with evaluating(model):
        return Reference(Decoder(model), room)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
