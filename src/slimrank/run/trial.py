"""After the work: the written checkpoint is loaded as a user would load it, and has to be what the run computed.

Each of its tensors has to be the computed one, rounded to a dtype of the files. Since that rounding changes the logits,
they are compared with those of the computed model while it has the loaded tensors: what differs then is not rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimrank.calibrate.follow import fixed_windows, seeded
from slimrank.errors import SlimrankError
from slimrank.model.decoder import Decoder
from slimrank.model.load import Loaded, load
from slimrank.store.source import Source
from slimrank.store.weights import Part, Weights

PIECE = 2**22  # numbers that are compared at a time
# of the logits' spread, root mean square: what the order of sums may change, by the dtype that is computed in
ROUNDED = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}
REPORT = "so it is not put in place: please report this with the model's name"


def short_windows(loaded: Loaded) -> Tensor:
    """The windows on which the walk, and what was written, are tried."""
    return fixed_windows(loaded.tokenizer, loaded.model.config.get_text_config().vocab_size)


def trial_of(decoder: Decoder, ids: Tensor, room: int) -> Callable[[Path], None]:
    """A function that raises a SlimrankError where the checkpoint in a folder is not this model.

    decoder: the compressed model; ids: the windows (windows, tokens) for the logits; room: bytes of host memory for
    weights: the checkpoint is loaded as transformers does where it takes half of them, else a block at a time.
    """
    device, dtype = str(decoder.device), str(decoder.dtype).removeprefix("torch.")
    size = sum(parameter.numel() for parameter in decoder.model.parameters()) * decoder.dtype.itemsize

    def tried(folder: Path) -> None:
        try:
            loaded = load(str(folder), dtype=dtype, device=device, room=None if size <= room / 2 else 0)
        except SlimrankError as error:
            raise SlimrankError(f"The checkpoint was written and does not load, so it is not kept: {error}") from error
        written = Decoder(loaded.model, loaded.weights)
        lent = Lent(decoder, written, Source(folder).dtypes())
        found, expected = (logits(one, ids) for one in (written, Decoder(decoder.model, lent)))
        apart = (found - expected).square().mean().sqrt() / expected.std()
        if not apart <= ROUNDED.get(decoder.dtype, 0.05):
            raise SlimrankError(
                f"The checkpoint loads to other logits than the run computed, by {apart:.2g} of their spread, "
                f"{REPORT}, unless its config was changed in memory and the model was not."
            )

    return tried


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    """The model's logits in float32 on the CPU."""
    with seeded():
        return decoder.logits(ids.to(decoder.device)).float().cpu()


class Lent(Weights):
    """The weights of a model, those of the same model as it was loaded from files in their places while one is held."""

    def __init__(self, computed: Decoder, written: Decoder, dtypes: set[torch.dtype]) -> None:
        """dtypes: of the files, to which the computed tensors may have been rounded."""
        super().__init__(computed.model, computed.prefix, len(computed))
        self.computed, self.written, self.dtypes = computed, written, dtypes

    @property
    def device(self) -> torch.device:
        """The device that both compute on."""
        return self.computed.device

    @contextmanager
    def hold(self, part: Part) -> Iterator[None]:
        """Inside, the part's tensors are the loaded ones.

        Raises:
            SlimrankError: where one of them is not the computed one, rounded.
        """
        with self.computed.weights.hold(part), self.written.weights.hold(part):
            ours, theirs = (self._tensors(decoder, part) for decoder in (self.computed, self.written))
            for name in sorted(ours.keys() | theirs.keys()):
                if name not in ours or name not in theirs or not rounded(ours[name], theirs[name], self.dtypes):
                    raise SlimrankError(f"The checkpoint's {name} is not what the run computed, {REPORT}.")
            self._put(theirs)
            try:
                yield
            finally:
                self._put(ours)

    def _tensors(self, decoder: Decoder, part: Part) -> dict[str, Tensor]:
        state = decoder.model.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if self.part_of(name) == part}

    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            held: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            held[leaf] = tensor  # the very parameter, so that tied ones stay tied


def rounded(computed: Tensor, found: Tensor, dtypes: set[torch.dtype]) -> bool:
    """Whether `found` is `computed` to the bit, as it is or rounded to one of these dtypes."""
    if computed.shape != found.shape or computed.dtype != found.dtype:
        return False
    kinds = {computed.dtype, *(dtypes if computed.is_floating_point() else ())}
    computed, found = (torch.atleast_1d(tensor.detach()) for tensor in (computed, found))
    rows = max(1, PIECE * len(computed) // max(1, computed.numel()))
    for own, other in zip(computed.split(rows), found.split(rows), strict=True):
        kinds = {kind for kind in kinds if torch.equal(own.to(kind).to(own), other)}
    return bool(kinds)
