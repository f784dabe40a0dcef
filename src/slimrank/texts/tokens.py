"""What the calibration and the evaluation ask of a tokenizer."""

import json
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from torch import Tensor, nn

from slimrank.errors import SlimrankError, UsageError
from slimrank.runtime.digests import sha256_of_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SpecialTokens = Literal["none", "text", "window"]
WHERE: dict[str, str] = {
    "none": "no BOS",
    "text": "BOS before the text",
    "window": "BOS before every window",
}


def check_special_tokens(place: str) -> None:
    """Raise a UsageError for what is not a SpecialTokens."""
    if place not in get_args(SpecialTokens):
        raise UsageError(f"--special-tokens {place} is unknown: choose one of {', '.join(get_args(SpecialTokens))}.")


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str], special_tokens: bool = True) -> list[list[int]]:
    """The token ids of each text, with the tokenizer's default special tokens; however long, without a warning."""
    try:
        encoded = tokenizer(texts, add_special_tokens=special_tokens, return_attention_mask=False, verbose=False)
    except Exception as error:  # the libraries raise errors of many unrelated types
        reason = " ".join(str(error).split())[:300]
        raise SlimrankError(f"The tokenizer cannot read the text ({reason}): get an intact tokenizer.") from error
    return encoded["input_ids"]


def beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of the special tokens that the tokenizer puts before a text by default, such as BOS."""
    text = "a"
    with_special, (plain,) = encode(tokenizer, [text])[0], encode(tokenizer, [text], special_tokens=False)
    count = next((i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain), 0)
    return with_special[:count]


def require_embedded(ids: Tensor, model: "PreTrainedModel") -> None:
    """Raise SlimrankError where an id is beyond the model's embedding."""
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    most, rows = (
        int(ids.max()),
        embedding.num_embeddings if hasattr(embedding, "num_embeddings") else len(embedding.weight),
    )
    if most >= rows:
        raise SlimrankError(
            f"The tokenizer gives the id {most}, but the model embeds ids below {rows}: get the model's own tokenizer."
        )


def fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The sha256 of everything that turns text into ids: vocabulary, merges, normalisation, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend else {"vocab": tokenizer.get_vocab()}
    # what the last caller asked for, not what the tokenizer is
    state |= {"truncation": None, "padding": None}
    state["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256_of_json(state)
