"""Speed of a random 1.45B Llama (hidden 2048, ffn 5632, 24 layers, vocabulary 32000), dense and in each form.

    python benchmarks/serving.py --threads 2 --out benchmarks/results/serving-cpu.json
    python benchmarks/serving.py --device cuda --out benchmarks/results/serving-cuda.json

Prints what `slimrank bench` prints. Dense and compressed models go through the same `slimrank.optimize`, and with
--compile through torch.compile. On CUDA, decoding replays CUDA graphs.
"""

import argparse
import platform

import torch
from random_forms import add_options, random_llama, set_up

from slimrank.cli import console
from slimrank.evaluate.speed import Asked, bench
from slimrank.model.load import DTYPES
from slimrank.serve.optimize import optimize


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--forms", default="low_rank,pivoted,columns")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--ffn", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--plain", action="store_true", help="do not optimize the models")
    parser.add_argument("--compile", action="store_true", help="decode by torch.compile")
    args = parser.parse_args()
    set_up(args)
    shape = {
        "hidden_size": args.hidden,
        "intermediate_size": args.ffn,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // 64,
        "vocab_size": args.vocabulary,
        "max_position_embeddings": 4096,
    }
    models = {
        form: random_llama(form, args.keep, DTYPES[args.dtype], **shape).to(args.device)
        for form in ("dense", *args.forms.split(","))
    }
    if not args.plain:
        models = {form: optimize(model) for form, model in models.items()}
    batches = tuple(int(batch) for batch in args.batches.split(","))
    asked = Asked(args.tokens, batches, args.steps, args.rounds, args.compile)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    settings = {
        "machine": machine,
        "threads": args.threads,
        "keep": args.keep,
        "align": args.align,
        "dtype": args.dtype,
        **shape,
    }
    found = bench(models, asked, settings | {"optimized": not args.plain, "torch": torch.__version__}, console.track)
    console.show_bench(found)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(found.to_json())


if __name__ == "__main__":
    main()
