"""The measured loss of truncation: the model runs on calibration windows with truncated linears in place."""

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from slimrank.allocate.base import Ranks
from slimrank.allocate.known import Known, Measured, key_of
from slimrank.calibrate.needs import Holds
from slimrank.calibrate.stream import Stream, default_batch
from slimrank.errors import SlimrankError, UsageError
from slimrank.forms import LowRank
from slimrank.forms.linear import bias_of, weight_of
from slimrank.model.units import Unit
from slimrank.numerics.balance import balanced
from slimrank.numerics.losses import next_token_losses
from slimrank.spectrum.shared import factors
from slimrank.spectrum.spectra import Spectra
from slimrank.store.pieces import Pieces

CPU_ROWS, DEVICE_ROWS = 32, 1024  # tokens at a time: fit the CPU's cache, keep a device busy
CPU_LOGITS, DEVICE_LOGITS = 2**25, 2**28  # logits at a time, enough for the head's full speed
Factors = tuple[Tensor, Tensor]  # (m, q) and (q, n)
Modules = dict[str, nn.Module]
Compare = Callable[[int, Tensor, Tensor], float]  # of a part's index, ids and logits


def holds(windows: Tensor, *, prefixes: bool = True, divergence: bool = True) -> Holds:
    """What `Damage` holds on these windows (count, tokens), see there; divergence: whether `kl` is asked for."""
    return Holds(
        windows.numel(),
        states=1,
        every_block=prefixes,
        rows=int(divergence),
        logits=(CPU_LOGITS, DEVICE_LOGITS),
    )


class Damage:
    """Losses of rank assignments that differ from a base assignment, on the first `windows` calibration windows.

    Only the blocks from the first difference on are run: the base model's hidden states before every block are held
    (windows x tokens x width each). After the first `kl` the dense probabilities are held too (windows x tokens x
    vocabulary, float32). passes: blocks run so far, each over all windows, those of an earlier process included whose
    measurements are among the pieces. Each process runs its share of the windows.
    """

    def __init__(
        self,
        spectra: Spectra,
        base: Ranks | None = None,
        *,
        windows: int = 32,
        ids: Tensor | None = None,
        prefixes: bool = True,
        pieces: Pieces | None = None,
    ) -> None:
        """base: all dense by default; ids: other windows (count, tokens), to measure on all of them instead; prefixes:
        False if every assignment changes all blocks.

        Then only the hidden states before the first block are held, and the factors of every linear. pieces: keep what
        is measured, so that it is not measured again after a kill.

        Raises:
            UsageError: if there are fewer calibration windows.
        """
        self._model = spectra.model
        if ids is None:
            ids = first_windows(spectra.evidence.windows.calibration, windows)
        self.spectra, self.decoder = spectra, spectra.model.decoder
        self.base: Ranks = dict(base or {})
        self.passes = 0
        self.windows, self._world = len(ids), self.decoder.world
        self._ids = self._world.share(ids)
        holds = prefixes or spectra.held.room
        self._factors: dict[Unit, Factors] | None = None if holds else {}
        self._layers = self._model.linears | self._cuts(self.base)
        self._known = Known(pieces, [key_of("base", self.base), self.windows], writes=self._world.main)
        self._stream, self._hidden = self._run_base(self._layers, prefixes)
        self._parts = self._cut_to_parts()
        self.passes += self._known.passes

    def kl(self, ranks: Ranks) -> float:
        """KL(dense || base with `ranks`) in nats, summed over a window's tokens, mean over windows."""
        return self._measured("kl", ranks) / self.windows

    def kl_with(self, layers: Modules) -> float:
        """The same of the base with these layers, by name, in the places of linears."""
        return self._compared(self._divergence, layers) / self.windows

    def nats(self, ranks: Ranks) -> float:
        """Mean next-token negative log-likelihood, in nats per token, of the base with `ranks`."""
        return self._measured("nats", ranks) / (self.windows * (self._ids.shape[1] - 1))

    def account(self, models: int) -> str:
        """A note on the block passes run, against those of running `models` whole models."""
        took, whole = f"{self.passes} block passes of {self.windows} windows", models * len(self.decoder)
        return f"Measured in {took}, instead of {whole} for {models} whole models."

    def _measured(self, kind: str, ranks: Ranks) -> float:
        changes = {unit: rank for unit, rank in ranks.items() if rank != self.base.get(unit)}
        key = key_of(kind, changes)
        if key not in self._known:
            compare, before = self._divergence if kind == "kl" else likelihood, self.passes
            value = self._compared(compare, self._cuts(changes))
            self._known.add(key, Measured(value, self.passes - before))
        return self._known[key].value

    def _cuts(self, ranks: Ranks) -> Modules:
        cuts = (cut(self.spectra, unit, rank, self._factors) for unit, rank in ranks.items())
        return {name: layer for layers in cuts for name, layer in layers.items()}

    def _compared(self, compare: Compare, layers: Modules) -> float:
        """The sum of `compare` over all processes' windows, with these layers in the base model.

        Raises:
            SlimrankError: if it is not finite.
        """
        logits = zip(self._parts, self._logits(layers), strict=True)
        total = self._world.total(sum(compare(index, ids, scores) for index, (ids, scores) in enumerate(logits)))
        if not math.isfinite(total):
            raise SlimrankError(
                f"The loss measured on calibration windows is {total} with {len(layers)} linears changed, the first of "
                f"them {next(iter(layers), '-')}: try --dtype float32, or an allocator that measures nothing."
            )
        return total

    def _divergence(self, part: int, ids: Tensor, logits: Tensor) -> float:
        probabilities, negentropy = self._dense[part]
        return negentropy + cross_nats(probabilities, logits)

    @cached_property
    def _dense(self) -> list[tuple[Tensor, float]]:
        """By part the dense model's probabilities (windows, tokens, vocabulary), float32, and their sum of p log p."""
        dense = self._logits(self._cuts(dict.fromkeys(unit for unit, rank in self.base.items() if rank is not None)))
        passes = self.passes
        pairs = ((logits.softmax(-1), logits) for logits in dense)
        found = [(probabilities, -cross_nats(probabilities, logits)) for probabilities, logits in pairs]
        if self._known.has("kl"):
            self.passes = passes  # an earlier process has counted them
        return found

    @torch.no_grad()
    def _run_base(self, layers: Modules, prefixes: bool) -> tuple[Stream, list[list[Tensor]]]:
        """The stream, and the base model's hidden states before every block, and behind the last, by batch."""
        stream = Stream(self.decoder, self._ids, default_batch(self.decoder, self._ids.shape[1]))
        hidden = [list(stream.hidden)]
        with self._model.replaced(layers):
            while prefixes and stream.depth < len(self.decoder):
                stream.skip(1)
                hidden.append(list(stream.hidden))
        self.passes += stream.depth
        return stream, hidden

    def _cut_to_parts(self) -> list[Tensor]:
        """The ids (windows, tokens) by part: a batch, or a piece of it whose logits fit CPU_LOGITS or DEVICE_LOGITS."""
        vocabulary = self.decoder.model.config.get_text_config().vocab_size
        numbers = CPU_LOGITS if self.decoder.device.type == "cpu" else DEVICE_LOGITS
        windows = max(1, numbers // (vocabulary * self._ids.shape[1]))
        return [part for ids in self._stream.ids for part in ids.split(windows)]

    @torch.no_grad()
    def _logits(self, layers: Modules) -> Iterator[Tensor]:
        """The float32 logits of each part with these layers in the base; runs the blocks from the first change on."""
        first = min((self._model.units[name].block for name in layers), default=len(self.decoder))
        first = min(first, len(self._hidden) - 1)
        self.passes += len(self.decoder) - first
        parts = iter(self._parts)
        with self._model.replaced(self._layers | layers):
            for batch, hidden in enumerate(self._hidden[first]):
                for index in range(first, len(self.decoder)):
                    hidden = self.decoder.run(index, hidden, self._stream.calls[batch][index])
                while len(hidden):
                    ids = next(parts)
                    yield self.decoder.head(ids, hidden[: len(ids)]).float()
                    hidden = hidden[len(ids) :]


def first_windows(calibration: Tensor, count: int) -> Tensor:
    """So many of the calibration windows (windows, tokens); raises a UsageError if there are fewer."""
    if len(calibration) < count:
        raise UsageError(
            f"allocate.windows {count} is more than the {len(calibration)} calibration windows: "
            "lower it or raise --samples."
        )
    return calibration[:count]


def cross_nats(probabilities: Tensor, logits: Tensor) -> float:
    """The cross-entropy -sum p log softmax(logits) in nats over all tokens, both (..., vocabulary)."""
    size = CPU_ROWS if logits.device.type == "cpu" else DEVICE_ROWS
    rows = zip(probabilities.flatten(0, -2).split(size), logits.flatten(0, -2).split(size), strict=True)
    return torch.stack([(z.logsumexp(-1) - torch.linalg.vecdot(p, z)).double().sum() for p, z in rows]).sum().item()


def likelihood(batch: int, ids: Tensor, logits: Tensor) -> float:
    """Summed negative log-likelihood in nats of ids (windows, tokens) by logits (windows, tokens, vocabulary)."""
    return next_token_losses(logits, ids).double().sum().item()


def cut(spectra: Spectra, unit: Unit, rank: int | None, known: dict[Unit, Factors] | None = None) -> Modules:
    """A unit's linears by name, truncated to a rank as pairs of thin linears; the dense ones for None.

    known: a cache of the units' full factors in the linears' dtype, filled here; None to cut without it.
    """
    dense = {name: spectra.model.linears[name] for name in unit.names}
    if rank is None:
        return dense
    dtype = weight_of(dense[unit.leader]).dtype
    if unit.shared:
        return {
            name: LowRank.from_low_rank(own["up"], own["down"], bias_of(dense[name])).to(dtype)
            for name, own in factors(spectra, unit, rank)
        }
    if known is None:
        single = len(unit.names) == 1
        left, right = spectra.decomposition(unit, None if single else rank).cut(rank)
    else:
        if unit not in known:
            whole = spectra.decomposition(unit)
            left, right = balanced(whole.left, whole.right)
            known[unit] = left.to(dtype), right.to(dtype)
        left, right = known[unit][0][:, :rank], known[unit][1][:rank]
    parts = left.split([rows for rows, _ in unit.shapes])
    return {
        name: LowRank.from_low_rank(part, right, bias_of(linear)).to(dtype)
        for (name, linear), part in zip(dense.items(), parts, strict=True)
    }
