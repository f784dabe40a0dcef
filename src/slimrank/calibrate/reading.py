"""What to read for calibration: the options of a command, or what a plan recorded."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from slimrank.calibrate.texts import read_text, spec_of
from slimrank.calibrate.tokens import require_embedded
from slimrank.calibrate.windows import Windows, check_window, context_length, sample_windows
from slimrank.errors import UsageError
from slimrank.load import Loaded


@dataclass(frozen=True)
class Reading:
    """spec: the text's SPEC, None for the demo's own; window None is the context, at most 2048; see sample_windows."""

    spec: str | None
    samples: int
    window: int | None
    seed: int
    special_tokens: bool = False
    chat: bool = False

    @classmethod
    def again(cls, record: dict[str, Any], spec: str | None) -> "Reading":
        """The reading that left `record`; `spec` tells where the text is now, if it has moved."""
        keys = ("samples", "window", "seed", "special_tokens", "chat")
        missing = [key for key in ("source", "sha256", *keys) if key not in record]
        if missing:
            raise UsageError(f"The plan's calibration lacks {missing[0]!r}: make it again.")
        return cls(spec_of(record["source"]) if spec is None else spec, **{key: record[key] for key in keys})


def read_windows(loaded: Loaded, reading: Reading, sha256: str | None = None) -> Windows:
    """The windows to calibrate on.

    Raises:
        UsageError: if there is no text, the window is beyond the context, or the text's hash is not `sha256`.
        SlimrankError: if the text is too short, or the tokenizer knows more than the model.
    """
    if reading.spec is None and loaded.name != "demo":
        raise UsageError(
            "--calibration is missing: give a text such as train.txt, file.jsonl:text or hub:name/config:split."
        )
    config = loaded.model.config
    window = reading.window or min(context_length(config) or 2048, 2048)
    check_window(window, config)
    text = read_text("demo" if reading.spec is None else reading.spec, chat=reading.chat, tokenizer=loaded.tokenizer)
    if sha256 is not None and text.sha256 != sha256:
        raise UsageError(f"{text.source} is not the text that the plan was made with: give that one by --calibration.")
    windows = sample_windows(
        loaded.tokenizer,
        text,
        samples=reading.samples,
        window=window,
        seed=reading.seed,
        special_tokens=reading.special_tokens,
    )
    for ids in (windows.calibration, windows.held_out):
        require_embedded(ids, loaded.model)
    windows.record["chat"] = reading.chat

    def more(number: int, seed: int) -> Tensor:
        ids = windows.more(number, seed)
        require_embedded(ids, loaded.model)
        return ids

    return replace(windows, more=more)
