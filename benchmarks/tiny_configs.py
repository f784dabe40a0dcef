"""A tiny config for any causal language model of transformers, by rules on what its config calls things."""

from typing import Any

from transformers import PretrainedConfig

WIDTH, HEADS, LAYERS, VOCABULARY, POSITIONS = 32, 4, 2, 320, 128

# the first rule whose names hold the attribute's gives its value
RULES: list[tuple[int | float, str]] = [
    (VOCABULARY, "vocab_size decoder_vocab_size unpadded_vocab_size vocab_size_per_layer_input"),
    (WIDTH, "hidden_size d_model n_embd dim emb_dim embed_dim embedding_dim embedding_size attention_hidden_size"),
    (WIDTH, "input_embedding_size output_embedding_size word_embed_proj_dim lru_width backbone_hidden_size dim_model"),
    (48, "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dim_ff dff d_inner ffn_hidden_size"),
    (48, "feed_forward_size"),
    (48, "dense_intermediate_size intermediate_size_mlp expert_ffn_hidden_size shared_intermediate_size ff_dim"),
    (24, "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"),
    (24, "shared_experts_intermediate_size"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"),
    (LAYERS, "num_encoder_layers num_layers_per_stack num_blocks"),
    (HEADS, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"),
    (HEADS, "num_decoder_attention_heads num_encoder_attention_heads attention_heads swa_num_attention_heads"),
    (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads num_query_groups"),
    (8, "head_dim dim_head d_head kv_channels swa_head_dim attention_head_dim attention_head_size v_head_dim d_kv"),
    (8, "query_pre_attn_scalar rotary_dim"),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k"),
    (1, "n_group topk_group num_expert_group n_shared_experts first_k_dense_replace num_dense_layers"),
    (8, "qk_nope_head_dim qk_rope_head_dim"),
    (16, "kv_lora_rank q_lora_rank"),
    (POSITIONS, "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length"),
    (16, "sliding_window attention_window_size window_size sliding_window_size image_size"),
    (8, "mamba_d_head mamba_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim"),
    (8, "patch_size mamba_d_state ssm_state_size state_size mamba_chunk_size chunk_size time_step_rank index_topk"),
    (8, "mamba_n_heads mamba_num_heads"),
    (4, "linear_num_key_heads linear_num_value_heads linear_num_heads index_n_heads"),
    (1, "bos_token_id"),
    (2, "eos_token_id"),
    (0, "pad_token_id"),
]  # fmt: skip
DEPTHS = [name for value, names in RULES if "num_hidden_layers" in names for name in names.split()]
WANTED = ("head_dim", "num_key_value_heads")  # also where the config leaves them to others
TINY = {name: value for value, names in RULES for name in names.split()}

# what the rules cannot know, by the config's class
_INDEXER = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}  # fmt: skip
_HYBRID = {
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    "num_hidden_layers": 4,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "num_key_value_heads": 4,
}
ODD: dict[str, dict[str, Any]] = {
    "CohereCompassTextConfig": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "Dots3NoteTextConfig": {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
    },
    "DeepseekV2Config": {"num_experts_per_tok": 2},
    "Dots1Config": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 24,
    },
    "FalconH1Config": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "Gemma3nTextConfig": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 320},
    "Gemma4TextConfig": {"num_kv_shared_layers": 0},
    "Gemma4UnifiedTextConfig": {"num_kv_shared_layers": 0},
    "GPTNeoConfig": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8},
    "NemotronConfig": {"num_key_value_heads": 2},
    "Qwen4ExpTextConfig": _INDEXER,
    "ReformerConfig": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "lsh_attn_chunk_length": 16,
        "local_attn_chunk_length": 16,
        "num_buckets": 4,
    },
    "RoCBertConfig": {"shape_vocab_size": 20, "pronunciation_vocab_size": 20},
    "XmodConfig": {"languages": ["en_XX"], "default_language": "en_XX"},
    "ZambaConfig": _HYBRID,
    "Zamba2Config": {**_HYBRID, "n_mamba_heads": 8, "mamba_ngroups": 1},
    "ZayaConfig": {"num_experts_per_tok": 1},
}


def tiny(kind: type[PretrainedConfig]) -> PretrainedConfig:
    """The config of a model of that kind with a few thousand parameters."""
    return kind(**settings(kind))


def settings(kind: type[PretrainedConfig]) -> dict[str, Any]:
    """The arguments of the tiny config, those of the configs inside it as dictionaries."""
    odd, default = ODD.get(kind.__name__, {}), kind()
    found = {name: TINY[name] for name, value in vars(default).items() if name in TINY and number(value)}
    found |= {name: TINY[name] for name in WANTED if name in vars(default)}
    if "kv_lora_rank" in found or getattr(default, "num_key_value_heads", 0) == getattr(
        default, "num_attention_heads", None
    ):
        found |= {name: HEADS for name in ("num_key_value_heads",) if name in found}
    for name, value in vars(default).items():
        if isinstance(value, PretrainedConfig):
            found[name] = {**settings(type(value)), "model_type": value.model_type}
        elif isinstance(value, list | tuple) and name.endswith(("_types", "_type")) and value:
            found[name] = shortened([v for v in value if not isinstance(v, list)])
    layers = max([LAYERS, *(len(v) for v in found.values() if isinstance(v, list))])
    for name in found:
        if name in DEPTHS:
            found[name] = layers
    return found | odd


def number(value: Any) -> bool:
    """Whether it is a number and no switch."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shortened(types: list[Any]) -> list[Any]:
    """Each type of layer once, in the order in which they come, at least `LAYERS` of them."""
    once = list(dict.fromkeys(types))
    return once + types[: max(0, LAYERS - len(once))]
