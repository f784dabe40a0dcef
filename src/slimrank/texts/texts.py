"""What to read: a SPEC becomes one long text that knows where it came from."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimrank import demo
from slimrank.errors import SlimrankError, UsageError
from slimrank.texts.rows import Row, hub_rows, jsonl_rows, parquet_rows, read_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TABLE = re.compile(r"(?P<path>.+\.(?P<kind>jsonl|parquet))(?::(?P<field>[^:]+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Text:
    """One text: its characters, the SPEC it was read from, and the sha256 of its UTF-8 bytes."""

    text: str
    source: str
    sha256: str


def _demo_source(part: demo.Part) -> str:
    return f"demo ({part})"


def spec_of(source: str) -> str:
    """The SPEC of a calibration text by what it says of its source."""
    return "demo" if source == _demo_source("calibration") else source


def read_text(
    spec: str,
    *,
    part: demo.Part = "calibration",
    chat: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Text:
    """Read `file.txt`, `file.jsonl[:field]`, `file.parquet[:column]`, `hub:name[/config]:split[:field]` or `demo`.

    Rows are joined with a blank line; their default field is `text`. With `chat` they are lists of {role, content}
    messages, by default under `messages`, rendered by the tokenizer's chat template. `part` matters to `demo` alone.

    Raises UsageError for a spec that cannot be meant (missing file, unknown field, no chat template) and SlimrankError
    for content that cannot be used (not UTF-8, bad JSON, a row that holds no text, an empty text).
    """
    if chat:
        _require_template(tokenizer)
    table = TABLE.fullmatch(spec)
    field = (table and table["field"]) or ("messages" if chat else "text")
    if spec.startswith("hub:"):
        rows = hub_rows(spec, field)
    elif table:
        reader = jsonl_rows if table["kind"].lower() == "jsonl" else parquet_rows
        rows = reader(Path(table["path"]), field)
    elif chat:
        raise UsageError(f"{spec} holds no chat messages: chat templates need a .jsonl, .parquet or hub: dataset")
    elif spec == "demo":
        return _text(read_utf8(demo.text(part)), _demo_source(part))
    else:
        return _text(read_utf8(Path(spec)), spec)
    return _text("\n\n".join(_strings(rows, spec, tokenizer if chat else None)), spec)


def _text(text: str, source: str) -> Text:
    if not text.strip():
        raise SlimrankError(f"{source} holds no text: give one that is not empty")
    try:
        return Text(text, source, hashlib.sha256(text.encode()).hexdigest())
    except UnicodeEncodeError as error:
        raise SlimrankError(f"{source} holds half a surrogate pair (character {error.start}): remove it") from None


def _strings(rows: Iterator[Row], source: str, tokenizer: "PreTrainedTokenizerBase | None") -> Iterator[str]:
    for place, value in rows:
        where = f"{source} {place}"
        if tokenizer is not None:
            yield _render(value, where, tokenizer)
        elif isinstance(value, str):
            yield value
        else:
            hint = " or use the chat template" if isinstance(value, list) else " or remove the row"
            raise SlimrankError(f"{where} holds {type(value).__name__} where text should be: name another field{hint}")


def _render(messages: Any, where: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    if not (
        isinstance(messages, list) and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages)
    ):
        raise SlimrankError(f"{where} is not a list of {{role, content}} messages: name the field that holds them")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # templates are programs: they raise whatever their authors chose
        raise SlimrankError(f"{where} does not fit the tokenizer's chat template: {error}") from error


def _require_template(tokenizer: "PreTrainedTokenizerBase | None") -> None:
    if tokenizer is None or not tokenizer.chat_template:
        raise UsageError("The tokenizer has no chat template: read the messages without one or use a chat model")
