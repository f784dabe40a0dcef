"""What a caller may give as texts: SPECs, paths, strings, rows and token ids, in memory or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slimrank import demo
from slimrank.errors import UsageError
from slimrank.runtime.digests import sha256_of_tensor
from slimrank.texts.rows import dataset_rows
from slimrank.texts.texts import IN_MEMORY, Text, default_field, joined, read_text, require_template, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME_BYTES = 255  # of a file, at most
IDS = "input_ids"


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Windows of token ids (rows, tokens), int64, that are taken as they are."""

    ids: Tensor
    source: str
    sha256: str

    @classmethod
    def of(cls, rows: Any) -> "TokenRows":
        """Of a tensor or a list of rows of one length.

        Raises:
            UsageError: for rows of several lengths, other axes, or numbers that are no ids.
        """
        if not isinstance(rows, Tensor):
            lengths = sorted({len(row) for row in rows})
            if len(lengths) > 1:
                raise UsageError(
                    f"The rows of token ids have {lengths[0]} to {lengths[-1]} tokens: cut them to one length."
                )
            rows = torch.as_tensor(rows)
        if rows.ndim != 2 or rows.is_floating_point() or not rows.numel() or rows.dtype == torch.bool or rows.min() < 0:
            raise UsageError(
                f"Token ids of shape {tuple(rows.shape)} and {rows.dtype}: give whole numbers from 0, (rows, tokens)."
            )
        ids = rows.detach().cpu().to(torch.int64)
        return cls(ids, f"{IN_MEMORY}{len(ids)} rows of token ids", sha256_of_tensor(ids))


Source = str | Text | TokenRows | Any  # the last is a datasets.Dataset


def sources_of(given: Any) -> list[Source]:
    """The texts that `given` means, in their order.

    A string is a SPEC, or the text itself where no file could have it as its name: it has a line break or is too long.
    Where one string of a list is such a text, all of them are, and make one. Rows of token ids are one text.

    Raises:
        UsageError: for what is no text.
    """
    if given is None:
        return []
    if isinstance(given, str | Path | Text | TokenRows | Tensor) or _is_dataset(given):
        return [_source(given)]
    if hasattr(given, "__array__"):
        return [TokenRows.of(torch.as_tensor(given))]
    if not isinstance(given, Sequence):
        raise _no_text(given)
    if given and all(isinstance(one, str) for one in given):
        texts = any(_is_text(one) for one in given)
        return [joined(enumerate(given), f"{IN_MEMORY}{len(given)} strings")] if texts else list(given)  # type: ignore[arg-type]
    if given and all(isinstance(row, Sequence) and row and isinstance(row[0], int) for row in given):
        return [TokenRows.of(given)]
    return [_source(one) for one in given]


def _source(one: Any) -> Source:
    if isinstance(one, str):
        return text_of(one, f"{IN_MEMORY}a string") if _is_text(one) else one
    if isinstance(one, Path):
        return str(one)
    if isinstance(one, Tensor):
        return TokenRows.of(one)
    if isinstance(one, Text | TokenRows) or _is_dataset(one):
        return one
    raise _no_text(one)


def _no_text(given: Any) -> UsageError:
    return UsageError(
        f"A {type(given).__name__} is no calibration text: give a file's path, strings, a datasets.Dataset, or token "
        "ids (rows, tokens)."
    )


def _is_text(string: str) -> bool:
    """Whether no file can have this name."""
    return "\n" in string or len(string.rpartition("/")[2].encode(errors="replace")) > NAME_BYTES


def _is_dataset(given: Any) -> bool:
    return hasattr(given, "column_names") and hasattr(given, "features")


def read_source(
    source: Source,
    *,
    part: demo.Part = "calibration",
    chat: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Text | TokenRows:
    """The text, or the windows, that a source holds; `part`, `chat`, `tokenizer` as for read_text.

    Raises:
        UsageError, SlimrankError: as read_text does.
    """
    if isinstance(source, str):
        return read_text(source, part=part, chat=chat, tokenizer=tokenizer)
    if isinstance(source, Text | TokenRows):
        if chat:
            raise UsageError(f"The text {source.source} holds no chat messages: leave out chat, or give their rows.")
        return source
    return _read_dataset(source, chat, tokenizer)


def _read_dataset(dataset: Any, chat: bool, tokenizer: "PreTrainedTokenizerBase | None") -> Text | TokenRows:
    kind = type(dataset).__name__
    if isinstance(dataset.column_names, dict):
        raise UsageError(f"The {kind} holds the splits {', '.join(dataset.column_names)}: give one of them.")
    if not hasattr(dataset, "__len__"):
        raise UsageError(f"The {kind} has no length: give a datasets.Dataset, such as one of its first rows.")
    if chat:
        require_template(tokenizer)
    field = default_field(chat)
    if not chat and IDS in dataset.column_names and field not in dataset.column_names:
        return TokenRows.of(list(dataset[IDS]))
    source = f"{IN_MEMORY}{kind} of {len(dataset)} rows"
    rows = dataset_rows(dataset, field, source, "dataset.select_columns and rename_column do")
    return joined(rows, source, tokenizer if chat else None)
