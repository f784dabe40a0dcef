"""Tiny random causal language models, one for each family that slimrank promises to handle."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 96
POSITIONS = 64

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GATED: dict[str, Any] = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2}


def build(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of `config`, the same for the same seed, with biases and norms away from 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def llama(**changes: Any) -> PreTrainedModel:
    """A Llama with grouped-query attention; `changes` go to its config."""
    return build(LlamaConfig(**{**_GATED, "rope_theta": 500000.0, "tie_word_embeddings": False, **changes}))


def gemma3_with_vision() -> PreTrainedModel:
    """A Gemma 3 whose vision tower has almost as many parameters in linears as its text blocks."""
    text = Gemma3TextConfig(**_GATED, head_dim=8, query_pre_attn_scalar=8, sliding_window=16)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    return build(Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4))


def mixtures() -> dict[str, PretrainedConfig]:
    """Configs of mixtures of experts that transformers 5 fuses, by family."""
    import transformers

    experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
    local: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
    routed: dict[str, Any] = {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    }  # fmt: skip
    latent: dict[str, Any] = {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        "num_key_value_heads": 4,
    }  # fmt: skip
    narrow = {"moe_intermediate_size": 24, "head_dim": 8}
    kinds: dict[str, dict[str, Any]] = {
        "Mixtral": local,
        "Qwen2Moe": experts | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
        "Qwen3Moe": experts | narrow,
        "Qwen3Next": experts | narrow | {
            "shared_expert_intermediate_size": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        },
        "Olmoe": experts,
        "DeepseekV2": routed | latent,
        "DeepseekV3": routed | latent,
        "Glm4Moe": routed | {"head_dim": 8},
        "GraniteMoe": local,
        "GptOss": local | {"head_dim": 8, "sliding_window": 16},
        "Llama4Text": local | {
            "intermediate_size_mlp": 48, "head_dim": 8, "attention_chunk_size": 32, "num_experts_per_tok": 1,
        },
        "NemotronH": {
            "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24, "layers_block_type": ["moe", "attention"], "head_dim": 8,
        },
    }  # fmt: skip
    return {
        name: getattr(transformers, f"{name}Config")(**{**_GATED, "num_key_value_heads": 2, **own})
        for name, own in kinds.items()
        if hasattr(transformers, f"{name}Config")  # the oldest release has not all
    }


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "mistral": lambda: build(MistralConfig(**_GATED)),
    "qwen2": lambda: build(Qwen2Config(**_GATED)),
    "qwen3": lambda: build(Qwen3Config(**_GATED, head_dim=8)),
    "gemma2": lambda: build(Gemma2Config(**_GATED, head_dim=8, query_pre_attn_scalar=8, sliding_window=16)),
    "gemma3": lambda: build(Gemma3TextConfig(**_GATED, head_dim=8, query_pre_attn_scalar=8, sliding_window=16)),
    "phi3": lambda: build(Phi3Config(**_GATED)),
    "opt": lambda: build(OPTConfig(**_COMMON, ffn_dim=48, word_embed_proj_dim=32)),
    "gpt2": lambda: build(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, bos_token_id=1, eos_token_id=2
        )
    ),
    "gpt-neox": lambda: build(GPTNeoXConfig(**_COMMON, intermediate_size=48)),
    "mixtral": lambda: build(MixtralConfig(**_GATED, num_local_experts=4, num_experts_per_tok=2)),
}
