"""What to read: a SPEC becomes one long text that knows where it came from."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimrank import demo
from slimrank.errors import SlimrankError, UsageError
from slimrank.runtime.digests import sha256_of_text
from slimrank.texts.rows import Row, csv_rows, hub_rows, json_rows, jsonl_rows, parquet_rows, read_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READERS = {"jsonl": jsonl_rows, "json": json_rows, "csv": csv_rows, "tsv": csv_rows, "parquet": parquet_rows}
TABLE = re.compile(rf"(?P<path>.+\.(?P<kind>{'|'.join(READERS)}))(?::(?P<field>[^:]+))?", re.IGNORECASE)
IN_MEMORY = "in memory: "  # how the source of a text begins that came from no file


@dataclass(frozen=True)
class Text:
    """One text: its characters, the SPEC it was read from, and the sha256 of its UTF-8 bytes."""

    text: str
    source: str
    sha256: str


def spec_of(source: str) -> str:
    """The SPEC of a calibration text by what it says of its source."""
    return demo.NAME if source == demo.source("calibration") else source


def read_text(
    spec: str | Path,
    *,
    part: demo.Part = "calibration",
    chat: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Text:
    """Read a SPEC: `file.txt`, a table `file.KIND[:field]`, `hub:name[/config]:split[:field]` or `demo`.

    A table is jsonl, json (an array, or an object a line), csv, tsv (with a header line) or parquet. Rows are joined
    with a blank line; their default field is `text`. With `chat` they are lists of {role, content} messages, by default
    under `messages`, rendered by the tokenizer's chat template. `part` matters to `demo` alone.

    Raises:
        UsageError: for an invalid spec (missing file, unknown field, no chat template).
        SlimrankError: for content that cannot be used (not UTF-8, bad JSON, a row that holds no text, an empty text).
    """
    spec = str(spec)
    if chat:
        require_template(tokenizer)
    table = TABLE.fullmatch(spec)
    field = (table and table["field"]) or default_field(chat)
    if spec.startswith("hub:"):
        rows = hub_rows(spec, field)
    elif table:
        rows = READERS[table["kind"].lower()](Path(table["path"]), field)
    elif chat:
        raise UsageError(f"{spec} holds no chat messages: chat templates need a table ({', '.join(READERS)}) or hub:")
    elif spec == demo.NAME:
        return text_of(read_utf8(demo.text(part)), demo.source(part))
    elif spec.startswith(IN_MEMORY):
        raise UsageError(f"The text was given {spec}: give it again as calibration=, in Python")
    else:
        return text_of(read_utf8(Path(spec)), spec)
    return joined(rows, spec, tokenizer if chat else None)


def default_field(chat: bool) -> str:
    """The field of a row that is read where none is named."""
    return "messages" if chat else "text"


def text_of(text: str, source: str) -> Text:
    """The text with its digest.

    Raises:
        SlimrankError: if it is empty or cannot be written as UTF-8.
    """
    if not text.strip():
        raise SlimrankError(f"{source} holds no text: give one that is not empty")
    try:
        return Text(text, source, sha256_of_text(text))
    except UnicodeEncodeError as error:
        raise SlimrankError(f"{source} holds half a surrogate pair (character {error.start}): remove it") from None


def joined(rows: Iterable[Row], source: str, tokenizer: "PreTrainedTokenizerBase | None" = None) -> Text:
    """The rows with a blank line between them; tokenizer: renders them, which are then chat messages."""
    return text_of("\n\n".join(_strings(rows, source, tokenizer)), source)


def _strings(rows: Iterable[Row], source: str, tokenizer: "PreTrainedTokenizerBase | None") -> Iterator[str]:
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
    plain = [message | {"content": _content(message, where)} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False))
    except Exception as error:  # templates are programs: they raise whatever their authors chose
        raise SlimrankError(f"{where} does not fit the tokenizer's chat template: {error}") from error


def _content(message: dict[str, Any], where: str) -> str | None:
    """A message's text: most templates would write a list of parts as Python does."""
    content = message["content"]
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return content
    if not isinstance(content, list):
        kind = type(content).__name__
        raise SlimrankError(f"{where} has a message whose content is {kind}, not text: remove the row")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind == "text" and isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    raise SlimrankError(f"{where} has a message with a part of type {kind!r}, which is no text: remove the row")


def require_template(tokenizer: "PreTrainedTokenizerBase | None") -> None:
    """Raise a UsageError if the tokenizer has no chat template."""
    if tokenizer is None or not tokenizer.chat_template:
        raise UsageError("The tokenizer has no chat template: read the messages without one or use a chat model")
