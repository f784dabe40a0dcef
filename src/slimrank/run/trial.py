"""After the work: the written checkpoint is loaded as a user would load it, and has to give the logits of the run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from slimrank.calibrate.follow import fixed_windows, seeded
from slimrank.errors import SlimrankError
from slimrank.model.decoder import Decoder
from slimrank.model.load import Loaded, load

# of the logits' spread, root mean square, by the dtype that the weights were rounded to
ROUNDED = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.3}


def short_windows(loaded: Loaded) -> Tensor:
    """The windows on which the walk, and what was written, are tried."""
    return fixed_windows(loaded.tokenizer, loaded.model.config.get_text_config().vocab_size)


def trial_of(decoder: Decoder, ids: Tensor, stored: torch.dtype, room: int | None) -> Callable[[Path], None]:
    """A function that raises a SlimrankError where the checkpoint in a folder gives other logits on the windows `ids`.

    decoder: the compressed model; stored: the dtype of the written weights; room: bytes for weights, as load has it.
    """
    with seeded():
        expected = decoder.logits(ids.to(decoder.device)).float().cpu()
    computed = str(decoder.dtype).removeprefix("torch.")
    allowed = max(ROUNDED.get(stored, 0.3), ROUNDED.get(decoder.dtype, 0.3))

    def tried(folder: Path) -> None:
        try:
            loaded = load(str(folder), dtype=computed, device=str(decoder.device), room=room)
        except SlimrankError as error:
            raise SlimrankError(f"The checkpoint was written and does not load, so it is not kept: {error}") from error
        with seeded():
            found = Decoder(loaded.model, loaded.weights).logits(ids.to(decoder.device)).float().cpu()
        apart = (found - expected).square().mean().sqrt() / expected.std()
        if not apart <= allowed:
            raise SlimrankError(
                f"The checkpoint loads to other logits than the run computed, by {apart:.2g} of their spread, so it is "
                "not put in place: please report this with the model's name."
            )

    return tried
