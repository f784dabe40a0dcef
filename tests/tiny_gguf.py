"""A Llama written as a GGUF file the way llama.cpp's converter writes one."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from sentencepiece import SentencePieceProcessor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast | SentencePieceProcessor | None,
    kind: GGMLQuantizationType = GGMLQuantizationType.Q4_1,
    *,
    architecture: str = "llama",
    more: dict[str, int] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    leave_out: str = "",
) -> dict[str, torch.Tensor]:
    """Write the model, its matrices as `kind`; returns what they are when dequantised, by transformers' names.

    tokenizer: a byte-level BPE or a sentencepiece one, None for none; more: further numbers in the header; extra:
    further tensors; leave_out: a tensor that is not written.
    """
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (more or {}).items():
        writer.add_uint16(key, value)
    if isinstance(tokenizer, SentencePieceProcessor):
        add_sentencepiece(writer, tokenizer)
    elif tokenizer is not None:
        add_byte_level(writer, tokenizer)
    made = {}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        short = short_name(name.removesuffix(".weight"))
        if short == leave_out:
            continue
        values = weight.float().numpy()
        rows = rotary_order(len(values), heads.get(short.rpartition(".")[2]))
        stored = values[rows]
        if stored.ndim > 1:
            packed = gguf.quantize(stored, kind)
            stored = gguf.dequantize(packed, kind)
            writer.add_tensor(f"{short}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{short}.weight", stored)
        back = np.empty_like(stored)
        back[rows] = stored
        made[name] = torch.from_numpy(back)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def short_name(name: str) -> str:
    """The name that llama.cpp gives to a module's weight."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, block, inside = name.split(".", 3)
    return f"blk.{block}.{NAMES[inside]}"


def rotary_order(rows: int, heads: int | None) -> list[int]:
    """Which row of transformers' matrix is at each place in the file.

    A head's pairs, which transformers has half a head apart, lie beside each other there; heads: None where nothing
    turns.
    """
    if heads is None:
        return list(range(rows))
    width, half = rows // heads, rows // heads // 2
    return [head * width + part * half + pair for head in range(heads) for pair in range(half) for part in (0, 1)]


def add_byte_level(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    """A byte-level BPE tokenizer, whose special tokens are <s> and </s>."""
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    special = {tokenizer.bos_token, tokenizer.eos_token}
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)


def add_sentencepiece(writer: GGUFWriter, tokenizer: SentencePieceProcessor) -> None:
    """A sentencepiece tokenizer with its scores."""
    ids = range(tokenizer.vocab_size())

    def kind(number: int) -> TokenType:
        if tokenizer.is_unknown(number):
            return TokenType.UNKNOWN
        if tokenizer.is_control(number):
            return TokenType.CONTROL
        return TokenType.BYTE if tokenizer.is_byte(number) else TokenType.NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_token_list([tokenizer.id_to_piece(number) for number in ids])
    writer.add_token_scores([tokenizer.get_score(number) for number in ids])
    writer.add_token_types([kind(number) for number in ids])
    writer.add_bos_token_id(tokenizer.bos_id())
    writer.add_eos_token_id(tokenizer.eos_id())
    writer.add_unk_token_id(tokenizer.unk_id())
