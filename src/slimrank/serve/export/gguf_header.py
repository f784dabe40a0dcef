"""What a GGUF file says of a model beside its tensors: sizes, and the tokenizer."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.model.load import Loaded
from slimrank.texts.tokens import beginning

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLITS = {LLAMA3: "llama-bpe", LLAMA3.replace("{1,3}", ""): "qwen2"}
"""llama.cpp's name for how a text is split before byte-level merges, by the regular expression."""


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp calls a model type; turns: whether q and k have a head's rotary pairs beside each other there."""

    name: str
    turns: bool = False

    @property
    def kind(self) -> Any:
        """The gguf package's number for it."""
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES

        return next(kind for kind in MODEL_ARCH if MODEL_ARCH_NAMES[kind] == self.name)

    def rows(self, tensor: str, config: Any) -> Tensor | None:
        """Which row of transformers' tensor is at each place in the file; None for the same order."""
        part = tensor.rsplit(".", 2)[-2]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
        if not self.turns or heads is None:
            return None
        width = config.head_dim
        return torch.arange(heads * width).view(heads, 2, width // 2).transpose(1, 2).reshape(-1)


ARCHITECTURES = {
    "llama": Architecture("llama", turns=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
"""By transformers' model type."""


def architecture_of(loaded: Loaded) -> Architecture:
    """The model's architecture.

    Raises:
        SlimrankError: for one that isn't known here, or with rotary frequencies of another kind than the plain one.
    """
    config = loaded.model.config
    if config.model_type not in ARCHITECTURES:
        raise SlimrankError(
            f"--to gguf writes {', '.join(ARCHITECTURES)} and MODEL {loaded.name} is {config.model_type}: export with "
            "--to dense and convert that with llama.cpp's converter."
        )
    kind = (rope_of(config).get("rope_type") or "default") if rope_of(config) else "default"
    if kind != "default":
        raise SlimrankError(f"--to gguf writes no rotary frequencies of the kind {kind}: export with --to dense.")
    return ARCHITECTURES[config.model_type]


def rope_of(config: Any) -> dict[str, Any]:
    """The settings of the rotary embedding, which older versions of transformers call rope_scaling."""
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}


def add_model(writer: Any, config: Any) -> None:
    """Sizes of a decoder with rotary embeddings and RMS norms."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope_of(config).get("rope_theta") or config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


def add_tokenizer(writer: Any, loaded: Loaded) -> None:
    """A byte-level BPE tokenizer.

    Raises:
        SlimrankError: for a tokenizer of another kind, or one that splits texts as llama.cpp doesn't.
    """
    from gguf import TokenType

    tokenizer, size = loaded.tokenizer, loaded.model.config.vocab_size
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend else {"model": {"type": "unknown"}}
    split = split_of(state.get("pre_tokenizer"))
    if state["model"]["type"] != "BPE" or split is None:
        raise SlimrankError(
            f"--to gguf writes byte-level BPE tokenizers, and MODEL {loaded.name} has another: export with --to dense "
            "and convert that with llama.cpp's converter."
        )
    if max(state["model"]["vocab"].values(), default=0) >= size:
        raise SlimrankError(
            f"MODEL {loaded.name} has {size} tokens and its tokenizer more, which --to gguf cannot write: export with "
            "--to dense and give it the tokenizer that it was trained with."
        )
    tokens, kinds = [f"[PAD{number}]" for number in range(size)], [TokenType.UNUSED] * size
    for token, number in state["model"]["vocab"].items():
        tokens[number], kinds[number] = token, TokenType.NORMAL
    for added in (one for one in state["added_tokens"] if one["id"] < size):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    first = beginning(tokenizer)
    writer.add_add_bos_token(bool(first) and first[0] == tokenizer.bos_token_id)
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id", None)
        if number is not None and number < size:
            getattr(writer, f"add_{kind}_token_id")(number)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def split_of(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """llama.cpp's name for how a tokenizer splits texts; None for one that it doesn't have, or isn't known here."""
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        return SPLITS.get((parts[0].get("pattern") or {}).get("Regex", ""))
    return None
