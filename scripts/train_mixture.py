"""Train a small mixture of experts to judge recipes by, on the text that the demo model was trained on.

    python scripts/train_mixture.py --out out/mixture            # 8 experts, 2 a token, 5.9 million parameters
    python scripts/train_mixture.py --out out/shared --shared    # beside them an expert that every token goes through

The demo's tokenizer and held-out texts are used: see train_demo.py. About 25 minutes of one CPU core; a stopped run
goes on at its last hundred steps. The model, 12 MB in bfloat16, is written to OUT/model and is no part of the package.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from train_demo import bucket, perplexity, sources, unigram_perplexity
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from slimrank import demo

EXPERTS, CHOSEN, WINDOW = 8, 2, 512
EVERY = 100  # steps between two savings of the progress


def mixture(tokenizer: PreTrainedTokenizerBase, shared: bool) -> PreTrainedModel:
    """An untrained mixture; shared: with an expert of the same size that every token goes through."""
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 256,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.01,
        "max_position_embeddings": WINDOW,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if shared:
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**settings, shared_expert_intermediate_size=256))
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings, head_dim=32))


def ids_of(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The token ids of the text to train on, documents ended by the tokenizer's end of text."""
    training = [text for path, text in sources() if bucket(path) > 2]
    encoded = tokenizer(training, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([i for document in encoded for i in (*document, tokenizer.eos_token_id)])


def batch_of(ids: Tensor, step: int, steps: int, tokens: int) -> Tensor:
    """The windows of a step (windows, tokens): of the whole length in the last quarter, of half of it before."""
    window = WINDOW // (1 if step >= 0.75 * steps else 2)
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(ids) - window, (tokens // window,), generator=generator)
    return torch.stack([ids[start : start + window] for start in starts.tolist()])


def train(model: PreTrainedModel, ids: Tensor, progress: Path, *, steps: int, tokens: int, lr: float) -> float:
    """AdamW, linear decay to zero, from the step that `progress` holds; returns the seconds of processor time."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    first, spent = load(progress, model, optimizer)
    started = time.process_time() - spent
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 100, 1 - step / steps)
        batch = batch_of(ids, step, steps, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, output_router_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            spent = time.process_time() - started
            save(progress, model, optimizer, step + 1, spent)
            print(f"step {step + 1} loss {loss.item():.3f} {spent:.0f} s", flush=True)
    return spent


def save(progress: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int, spent: float) -> None:
    """Replace the file of weights and optimizer state in one step."""
    tensors = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    part = progress.with_suffix(".part")
    save_file(tensors, part, {"step": str(step), "spent": str(spent)})
    part.replace(progress)


def load(progress: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """The next step and the seconds spent so far, weights and optimizer state being loaded; 0 where none are saved."""
    if not progress.exists():
        return 0, 0.0
    state: dict[int, dict[str, Tensor]] = {}
    with safe_open(progress, "pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model.{name}"))
        for name in file.keys():  # noqa: SIM118 (no mapping)
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, key = rest.partition(".")
                state.setdefault(int(number), {})[key] = file.get_tensor(name)
        facts = file.metadata()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(facts["step"]), float(facts["spent"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/mixture"))
    parser.add_argument("--shared", action="store_true", help="with an expert that every token goes through")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    if (args.out / "training.json").exists():
        print(f"{args.out}/training.json is there: nothing to do.")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL)
    ids = ids_of(tokenizer)
    held_out = demo.text("evaluation").read_text(encoding="utf-8")
    evaluation = torch.tensor(tokenizer(held_out, verbose=False)["input_ids"])
    model = mixture(tokenizer, args.shared)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(ids)} tokens of text", flush=True)
    progress = args.out / "progress.safetensors"
    spent = train(model, ids, progress, steps=args.steps, tokens=args.tokens_per_step, lr=args.lr)

    model.to(torch.bfloat16).save_pretrained(args.out / "part")
    tokenizer.save_pretrained(args.out / "part")
    shutil.rmtree(args.out / "model", ignore_errors=True)
    (args.out / "part").rename(args.out / "model")
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": args.steps * args.tokens_per_step,
        "minutes": round(spent / 60, 1),
        "unigram_perplexity": round(unigram_perplexity(ids, evaluation, len(tokenizer)), 2),
        "perplexity": round(perplexity(model.float(), evaluation, WINDOW), 3),
        "window": WINDOW,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    progress.unlink()
    print(record)


if __name__ == "__main__":
    main()
