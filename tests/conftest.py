import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)  # the models are tiny and the tests run in parallel

VOCABULARY = 320
WORDS = ["the", "river", "stone", "walked", "under", "light", "and", "house", "blue", "sing", "morning", "after"]


def words(count: int, seed: int = 0) -> str:
    """Sentences of random words, about five and a half characters a word."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + rng.choice(["", "", "", ".", "\n"]) for _ in range(count))


@pytest.fixture(scope="session")
def make_text() -> Callable[..., str]:
    """words(count, seed=0) -> str: random sentences."""
    return words


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most 320 tokens, trained on the spot; its default special token is a leading <s> (id 0)."""
    return make_tokenizer()


@pytest.fixture(scope="module")
def module_tokenizer() -> PreTrainedTokenizerFast:
    """The same, once a module."""
    return make_tokenizer()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Made anew each time, since tokenizers can be changed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words(2000)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=64)


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """tiny_llama(seed=0, **config) -> a random fp32 Llama in eval mode: 2 blocks, width 32, GQA, context 128."""

    def build(seed: int = 0, **config: Any) -> LlamaForCausalLM:
        defaults: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": False,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**defaults | config)).eval()

    return build


@pytest.fixture
def place(tiny_llama, tiny_tokenizer, make_text, tmp_path, monkeypatch) -> Path:
    """A folder to work in that holds a bfloat16 model `dense` and text.txt."""
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(make_text(4000))
    monkeypatch.chdir(tmp_path)
    return tmp_path
