"""The dense and the compressed model side by side on the same windows."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from torch import Tensor, nn

from slimrank.calibrate.experts import experts_of
from slimrank.calibrate.pairs import PairMoments, Seen, corrects, watch_sums
from slimrank.calibrate.stream import Stream, default_batch
from slimrank.forms.experts import Unfolded, watching
from slimrank.forms.experts.fused import Rows
from slimrank.forms.linear import bias_of, shape_of
from slimrank.model.compressible import Compressible
from slimrank.refine.replay import Replay

HELD = 2**30  # bytes of cached outputs of a block: dense ones, and half of it for compressed ones

Routing = dict[Unfolded, Rows]


class Pair:
    """The same windows in the dense and in the compressed model, taken through both a block at a time.

    Each process takes its share of the windows; `moments` are those of all windows. residual: see PairMoments.
    """

    def __init__(self, model: Compressible, ids: Tensor, residual: bool) -> None:
        self.model, self._residual, decoder = model, residual, model.decoder
        ids, batch = decoder.world.share(ids), default_batch(decoder, ids.shape[1])
        self.dense, self.compressed = (Stream(decoder, ids, batch) for _ in range(2))
        self._held: dict[int, tuple[dict[str, Seen], Tensor, Routing]] = {}
        self._replay = Replay(min(HELD, decoder.states_room.host) // 2)
        self._seen: set[str] = set()  # the block's linears whose outputs will not change

    @property
    def block(self) -> dict[str, nn.Module]:
        """The dense linears of the block that both streams are at."""
        return self.model.blocks[self.dense.depth]

    def stay(self, names: Iterable[str]) -> None:
        """Linears of the block that are not fitted, and behind none that is yet to be: their outputs are final."""
        self._seen.update(names)

    def moments(self, groups: Sequence[Sequence[str]], *, fitted: bool = True) -> list[PairMoments]:
        """The moments of the linears of each group, which share an input; linears of earlier groups must be final.

        fitted: these linears are fitted next, and final then.

        Several groups in one pass must not read each other's outputs. Experts are sent the same tokens in both models,
        those that the dense model's router sends them.
        """
        final, names = self._final(), [name for group in groups for name in group]
        moments, dense = [PairMoments() for _ in groups], {name: self.block[name] for name in names}
        compressed = {name: self.model.decoder.model.get_submodule(name) for name in names}
        biases = {name: bias for name, linear in dense.items() if (bias := bias_of(linear)) is not None}
        rows = {module: shape_of(dense[name])[0] for name, module in compressed.items()}
        summed: list[str] | None = None  # linears whose outputs are added to the residual, known after a dense pass
        for batch in range(len(self.dense.hidden)):
            before, routing = self._dense_seen(batch, dense, summed)
            summed = [name for name, seen in before.items() if corrects(seen, self._residual)]
            replayed, known = self._replay(final, batch), zeros_from(rows)
            with replayed, known, watch_sums(compressed, summed) as after, self._routed(routing):
                self.compressed.output(batch)
            for group, own in zip(groups, moments, strict=True):
                if seen := {name: before[name] for name in group if name in before}:
                    own.add(seen, {name: after[name] for name in seen}, biases, self._residual)
        self._seen |= dense.keys() if fitted else set()
        for group, own in zip(groups, moments, strict=True):
            own.fill(shape_of(dense[group[0]])[1], self.model.decoder.device)
            own.add_up(self.model.decoder.world)
        return moments

    def _routed(self, routing: Routing) -> AbstractContextManager[None]:
        """Inside, the block's experts get the tokens that `routing` says."""
        return watching(list(routing), lambda module, hidden, rows: routing[module])

    @contextmanager
    def _noted(self) -> Iterator[Routing]:
        """What tokens the block's experts get."""
        routing: Routing = {}

        def note(module: Unfolded, hidden: Tensor, rows: Rows) -> Rows:
            routing[module] = rows
            return rows

        with watching(list(experts_of(self.model.decoder, self.dense.depth).values()), note):
            yield routing

    def _final(self) -> list[nn.Module]:
        """The modules whose outputs can be replayed: the final linears, and the block's children with no others."""
        index, model = self.compressed.depth, self.model.decoder.model
        final = []
        for child, module in model.get_submodule(f"{self.model.decoder.prefix}.{index}").named_children():
            inside = f"{self.model.decoder.prefix}.{index}.{child}"
            linears = {name for name in self.model.blocks[index] if name == inside or name.startswith(f"{inside}.")}
            if linears and linears <= self._seen:
                final.append(module)
        return final + [linear for name in self._seen if (linear := model.get_submodule(name)) not in final]

    def _dense_seen(
        self, batch: int, dense: dict[str, nn.Module], summed: Collection[str] | None
    ) -> tuple[dict[str, Seen], Routing]:
        """Inputs and outputs of the dense linears for a batch, cached for the whole block if they fit, and the routing.

        Without the experts that get no token of the batch.
        """
        if not self._fits:
            with self.model.as_dense(self.block), watch_sums(dense, summed) as seen, self._noted() as routing:
                self.dense.output(batch)
            return seen, routing
        if batch not in self._held:
            with self.model.as_dense(self.block), watch_sums(self.block) as seen, self._noted() as routing:
                output = self.dense.output(batch)
            self._held[batch] = {name: read(own, self._residual) for name, own in seen.items()}, output, routing
        seen, _, routing = self._held[batch]
        return {name: seen[name] for name in dense if name in seen}, routing

    @property
    def _fits(self) -> bool:
        outputs = sum(shape_of(linear)[0] for linear in self.block.values()) / self.model.decoder.width
        return self.dense.nbytes * (outputs + 2) <= min(HELD, self.model.decoder.states_room.host)

    def advance(self) -> None:
        """Take both streams behind the block."""
        self.stay(self.block)
        known = [output for _, (_, output, _) in sorted(self._held.items())]
        with self.model.as_dense(self.block):
            for _ in self.dense.advance(known if len(known) == len(self.dense.hidden) else None):
                pass
        self._held.clear()
        for _ in self.compressed.advance(self._compressed_outputs()):
            pass
        self._seen.clear()
        self._replay.clear()

    def _compressed_outputs(self) -> Iterator[Tensor]:
        experts = experts_of(self.model.decoder, self.compressed.depth).values()  # sent tokens by its own router now
        routed = {inner for one in experts for inner in one.modules()}
        final = [module for module in self._final() if not routed.intersection(module.modules())]
        for batch in range(len(self.compressed.hidden)):
            with self._replay(final, batch, keep=False):
                output = self.compressed.output(batch)
            yield output


def read(seen: Seen, residual: bool) -> Seen:
    """What moments read of a linear of the dense model, without the tensor that they don't."""
    return replace(seen, x=seen.y) if corrects(seen, residual) else Seen(seen.x, seen.x)


@contextmanager
def zeros_from(rows: Mapping[nn.Module, int]) -> Iterator[None]:
    """Inside, linears give zeros (..., m) at once, for a pass of which only their inputs and residuals matter.

    rows: m by linear.
    """
    for module, count in rows.items():
        module.forward = lambda x, count=count: x.new_zeros(*x.shape[:-1], count)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        for module in rows:
            del module.forward
