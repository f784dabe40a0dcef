"""Train the demo model that ships in src/slimrank/demo, from the sources of Python's standard library.

    python scripts/train_demo.py --out src/slimrank/demo --steps 3200

A file is held out by a hash of its module's name (a test goes with its module), so that no part of the
shipped text was trained on. About 80 minutes on two CPU cores.
"""

import argparse
import hashlib
import json
import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
SKIPPED = {"site-packages", "encodings", "pydoc_data", "lib2to3", "idlelib"}  # data tables, bad syntax on purpose


def bucket(path: Path) -> int:
    """Of 25 buckets, 0 and 1 are calibration text, 2 is evaluation text, the rest is for training."""
    module = path.stem.removeprefix("test_").lstrip("_")
    return int(hashlib.sha256(module.encode()).hexdigest(), 16) % 25


def sources() -> Iterator[tuple[Path, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not SKIPPED.intersection(name.parts) and path.stat().st_size > 200:
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def is_test(path: Path) -> bool:
    return "test" in path.parts or "tests" in path.parts


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS)


def unigram_perplexity(train: torch.Tensor, held_out: torch.Tensor, vocabulary: int) -> float:
    counts = torch.bincount(train, minlength=vocabulary).double() + 1
    return math.exp(-(counts / counts.sum()).log()[held_out].mean().item())


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor, window: int) -> float:
    windows = ids[: len(ids) // window * window].view(-1, window)
    losses = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in windows.split(8)]
    return math.exp(sum(losses) / len(windows))


def train(model: LlamaForCausalLM, ids: torch.Tensor, *, steps: int, tokens_per_step: int, lr: float) -> None:
    """AdamW, linear decay to zero; the last quarter of the steps reads the full context, the rest half of it."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    compiled = torch.compile(model)
    started = time.time()
    for step in range(steps):
        window = model.config.max_position_embeddings // (1 if step >= 0.75 * steps else 2)
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 150, 1 - step / steps)
        starts = torch.randint(len(ids) - window, (tokens_per_step // window,), generator=generator)
        batch = torch.stack([ids[s : s + window] for s in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--vocabulary", type=int, default=4096)
    args = parser.parse_args()
    torch.manual_seed(0)

    files = list(sources())
    training = [text for path, text in files if bucket(path) > 2]
    held_out = [
        "\n\n".join(t for p, t in files if bucket(p) in buckets and not is_test(p))[:characters]
        for buckets, characters in (((0, 1), 600_000), ((2,), 400_000))
    ]
    texts = args.out / "text"
    texts.mkdir(parents=True, exist_ok=True)
    for name, text in zip(("calibration.txt", "evaluation.txt"), held_out, strict=True):
        (texts / name).write_text(text, encoding="utf-8")

    tokenizer = train_tokenizer(training, args.vocabulary)
    encoded = tokenizer(training, add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.tensor([i for document in encoded for i in (*document, tokenizer.eos_token_id)])
    evaluation = torch.tensor(tokenizer(held_out[1], verbose=False)["input_ids"])
    print(f"{len(training)} files, {len(ids)} tokens; held out {[len(t) for t in held_out]} characters", flush=True)
    unigram = unigram_perplexity(ids, evaluation, args.vocabulary)
    print(f"unigram perplexity {unigram:.1f}", flush=True)

    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    started = time.time()
    train(model, ids, steps=args.steps, tokens_per_step=args.tokens_per_step, lr=args.lr)

    model.to(torch.bfloat16).save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": args.steps * args.tokens_per_step,
        "minutes": round((time.time() - started) / 60, 1),
        "unigram_perplexity": round(unigram, 2),
        "perplexity": round(perplexity(model.float(), evaluation, config.max_position_embeddings), 3),
        "window": config.max_position_embeddings,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(record)


if __name__ == "__main__":
    main()
