"""What to read for calibration: the options of a command, or what a plan recorded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from slimrank import demo
from slimrank.errors import UsageError
from slimrank.model.load import Loaded
from slimrank.texts.given import Source, TokenRows, read_source, sources_of
from slimrank.texts.mix import CLOSE, mixed, split_share, with_share
from slimrank.texts.texts import Text, spec_of
from slimrank.texts.tokens import require_embedded
from slimrank.texts.windows import Windows, check_window, context_length, sample_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Reading:
    """What to read for calibration, and how.

    spec: a SPEC or several, with or without shares (see mix), or what else sources_of takes; None for the demo's own.
    samples, window, seed, special_tokens: see sample_windows; window None is the context, at most 2048, or the length
    of the rows of token ids. chat: rows are chat messages.
    """

    spec: Any
    samples: int
    window: int | None
    seed: int
    special_tokens: bool = False
    chat: bool = False

    @classmethod
    def again(cls, record: dict[str, Any], spec: Any) -> "Reading":
        """The reading that left `record`; `spec` tells where its texts are now, in their order, if they have moved."""
        keys = ("samples", "window", "seed", "special_tokens", "chat")
        missing = [key for key in ("source", "sha256", *keys) if key not in record]
        if missing:
            raise UsageError(f"The plan's calibration lacks {missing[0]!r}: make it again.")
        options = {key: record[key] for key in keys}
        return cls(_moved(record, named) if (named := sources_of(spec)) else specs_again(record), **options)


def texts_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Source, sha256 and share of each text of a record."""
    texts = record.get("texts", [{"source": record["source"], "sha256": record["sha256"], "share": 1.0}])
    kinds = {"source": str, "sha256": str, "share": float}
    if not isinstance(texts, list) or not all(isinstance(text, dict) for text in texts):
        raise UsageError("The plan's calibration.texts is no list of texts: make it again.")
    for text in texts:
        wrong = [key for key, kind in kinds.items() if not isinstance(text.get(key), kind)]
        if wrong:
            raise UsageError(f"A text of the plan's calibration has no {wrong[0]!r} that can be read: make it again.")
    return texts


def specs_again(record: dict[str, Any]) -> list[str]:
    """What to give as --calibration for the texts of a record, in its shares."""
    specs = [(spec_of(text["source"]), text["share"]) for text in texts_of(record)]
    plain = len(specs) == 1 and split_share(specs[0][0])[1] is None
    return [spec if plain else with_share(spec, share) for spec, share in specs]


def _moved(record: dict[str, Any], sources: Sequence[Source]) -> list[Source]:
    """The same shares of the texts that are named now."""
    texts, named = texts_of(record), [split_share(one) for one in sources]
    if len(named) != len(texts):
        raise UsageError(
            f"The plan was made with {len(texts)} calibration texts, and --calibration names {len(named)}: name as "
            "many, in the plan's order, or none."
        )
    for text, (name, share) in zip(texts, named, strict=True):
        if share is not None and abs(share - text["share"]) > CLOSE:
            raise UsageError(f"The plan gives {name} a share of {text['share']:g}, not {share:g}: leave the share out.")
    return [
        with_share(name, text["share"]) if isinstance(name, str) else name
        for text, (name, _) in zip(texts, named, strict=True)
    ]


def read_windows(loaded: Loaded, reading: Reading, record: dict[str, Any] | None = None) -> Windows:
    """The windows to calibrate on; record: an earlier reading's, whose texts these have to be.

    Raises:
        UsageError: if there is no text, the window is beyond the context, shares are invalid, or a text's hash is
            not the record's.
        SlimrankError: if a text is too short, or the tokenizer knows more than the model.
    """
    named = sources_of(reading.spec) or demo.texts_of(loaded.name)
    if not named:
        raise UsageError(
            "--calibration is missing: give a text such as train.txt, file.jsonl:text or hub:name/config:split."
        )
    sources, shares = zip(*mixed(named), strict=True)
    texts = [read_source(one, chat=reading.chat, tokenizer=loaded.tokenizer) for one in sources]
    config = loaded.model.config
    window = reading.window or _usual_window(texts, config)
    check_window(window, config)
    for text, other in zip(texts, texts_of(record) if record else (), strict=bool(record)):
        if text.sha256 != other["sha256"]:
            raise UsageError(
                f"{text.source} is not the text that the plan was made with: give that one by --calibration."
            )
    windows = sample_windows(
        loaded.tokenizer,
        texts,
        samples=reading.samples,
        window=window,
        seed=reading.seed,
        special_tokens=reading.special_tokens,
        shares=shares,
    )
    for ids in (windows.calibration, windows.held_out):
        require_embedded(ids, loaded.model)
    windows.record["chat"] = reading.chat

    def more(number: int, seed: int) -> Tensor:
        ids = windows.more(number, seed)
        require_embedded(ids, loaded.model)
        return ids

    return replace(windows, more=more)


def _usual_window(texts: Sequence[Text | TokenRows], config: "PretrainedConfig") -> int:
    """The length of the rows of token ids, where there are some, or the context, at most 2048."""
    lengths = [text.ids.shape[1] for text in texts if isinstance(text, TokenRows)]
    return lengths[0] if lengths else min(context_length(config) or 2048, 2048)
