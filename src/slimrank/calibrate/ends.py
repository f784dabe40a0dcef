"""What calibration sees of embedding and head: enough to price an error of their rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.calibrate.backward import Loss
from slimrank.calibrate.stream import Part
from slimrank.model.compressible import ends_of
from slimrank.model.decoder import Decoder
from slimrank.model.modules import attached
from slimrank.numerics.gram_sum import GramSum
from slimrank.store.pieces import Pieces

KEY = "ends"


def has_ends(decoder: Decoder) -> bool:
    """Whether embedding and head are plain ones of the hidden states' width, so that their errors can be priced."""
    table, head = ends_of(decoder.model)
    if table is None or not isinstance(head, nn.Linear):
        return False
    return table.weight.shape[1] == head.weight.shape[1] == decoder.width


@dataclass
class EndMoments:
    """Sums over the tokens of the gradient pass, by vocabulary entry v.

    read: of x x^T, the head's input (d, d); spread: of p_v (1 - p_v) (V,); counts: how often v was read (V,);
    gradient: of g g^T, dL/dh at the first block's input h (d, d); scale: s where h is s times the embedding's row.
    """

    read: GramSum
    spread: Tensor
    counts: Tensor
    gradient: GramSum
    tokens: int = 0
    scale: float = 1.0

    @classmethod
    def empty(cls, decoder: Decoder, ids: list[Tensor]) -> "EndMoments":
        """Before the head has run; ids: of this process's windows, by batch."""
        size, device = int(decoder.model.config.get_text_config().vocab_size), decoder.device
        counts = torch.zeros(size, dtype=torch.float64, device=device)
        for batch in ids:
            counts += torch.bincount(batch.flatten(), minlength=size).double()
        width = decoder.width
        return cls(GramSum.empty(width, device), torch.zeros_like(counts), counts, GramSum.empty(width, device))

    @contextmanager
    def watching(self, decoder: Decoder) -> Iterator[None]:
        """Inside, the head's inputs are summed."""
        head: Any = decoder.model.get_output_embeddings()

        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().flatten(0, -2)
            self.read.add(x)
            self.tokens += len(x)

        with attached([head.register_forward_pre_hook(note)]):
            yield

    def spread_of(self, loss: Loss) -> Loss:
        """The loss, which also sums p (1 - p) of its logits."""

        def watched(logits: Tensor, part: Part) -> Tensor:
            with torch.no_grad():
                shares = logits.softmax(-1)
                self.spread += (shares - shares.square()).flatten(0, -2).sum(0).double()
            return loss(logits, part)

        return watched

    def add_gradients(self, decoder: Decoder, ids: list[Tensor], hidden: list[Tensor], gradients: list[Tensor]) -> None:
        """Add the gradients at the first block's input, by batch, and add up over the processes."""
        for gradient in gradients:
            self.gradient.add(gradient.to(decoder.device).flatten(0, -2))
        table: Any = decoder.model.get_input_embeddings()
        with decoder.weights.hold(None):
            rows = table.weight[ids[0]].double()
        first = hidden[0].to(rows.device).double()
        self.scale = ((first * rows).sum() / rows.square().sum()).item()
        world = decoder.world
        world.add_up(self.read.packed, self.spread, self.counts, self.gradient.packed)
        self.tokens = int(world.total(self.tokens))
        self.scale = world.total(self.scale) / world.size

    def price(self, squares: Tensor, *, entry: bool, head: bool) -> float:
        """The expected loss, in nats a token, of errors in the rows with these squares (V, d).

        entry, head: whether the rows are read as an embedding, multiplied as a head, or both where these are tied.
        Tokens that were not read count as one in all of them. Errors are taken as independent.
        """
        total, squares = 0.0, squares.double()
        if head:
            total += (self.spread @ (squares @ self.read.full().diagonal())).item() / self.tokens**2 / 2
        if entry:
            shares = (self.counts + 1 / len(self.counts)) / (self.counts.sum() + 1)
            of_rows = squares @ self.gradient.full().diagonal()
            total += self.scale**2 * (shares @ of_rows).item() / self.tokens / 2
        return total

    def save(self, pieces: Pieces) -> None:
        """Save it as a piece."""
        tensors = {
            "read": self.read.packed, "spread": self.spread, "counts": self.counts, "gradient": self.gradient.packed,
        }  # fmt: skip
        facts = {"tokens": self.tokens, "scale": self.scale, "width": self.read.width}
        pieces.save(KEY, {name: tensor.cpu() for name, tensor in tensors.items()}, facts)

    @classmethod
    def load(cls, pieces: Pieces, device: torch.device) -> "EndMoments":
        """Load it from the pieces."""
        tensors, facts = pieces.load(KEY)
        read, gradient = (GramSum(tensors[name].to(device), facts["width"], device) for name in ("read", "gradient"))
        spread, counts = (tensors[name].to(device) for name in ("spread", "counts"))
        return cls(read, spread, counts, gradient, facts["tokens"], facts["scale"])
