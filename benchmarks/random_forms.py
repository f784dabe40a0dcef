"""Compressed layers and models with random weights: speed depends on shapes only, so nothing needs calibration."""

import math
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from slimrank.forms import Dense, Form, KeptColumns, LowRank, Pivoted, link
from slimrank.forms.bits import pack
from slimrank.forms.joint import Joint
from slimrank.forms.linear import is_linear
from slimrank.model.load import DTYPES

ALIGN = 8
"""Ranks are multiples of this, which matrix kernels like; set it to 1 for any rank."""


def add_options(parser):
    """What every benchmark of random layers is asked."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--align", type=int, default=8, help="round ranks down to multiples of this")
    parser.add_argument("--out", type=Path)


def set_up(args):
    """Threads, seed and alignment, as asked."""
    global ALIGN
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ALIGN = args.align


def rank_for(form: str, out: int, inp: int, keep: float) -> int:
    """The largest such rank whose numbers are at most `keep` of the dense layer's; a sixteenth of columns is kept."""
    budget, both = keep * out * inp, out + inp
    kept = inp // 16 if form == "columns" else 0
    rank = (budget - kept * out) / (both - kept)
    if form in ("pivoted", "joint"):
        rank = (both - math.sqrt(both * both - 4 * budget)) / 2
    return int(rank) // ALIGN * ALIGN


def random_form(form: str, out: int, inp: int, keep: float, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """A layer of this form with random factors and, where it has them, random pivots or kept columns.

    dense: the form, for few bits; `keep` is not looked at.
    """
    rank = rank_for(form, out, inp, keep)
    if form == "columns":
        module = KeptColumns(inp, out, rank, inp // 16, bias=False, device="meta", dtype=dtype)
    else:
        kind = {"low_rank": LowRank, "pivoted": Pivoted, "dense": Dense}[form]
        module = kind.empty(inp, out, rank, False, dtype)
    module = module.to_empty(device=device)
    module.randomize()
    return module.eval()


def random_numbers(layer: Form, bits: int) -> Form:
    """The layer with random numbers of so many bits in the places of its factors', in groups as Form.use_bits does."""
    layer.use_bits(bits)
    for factor in layer.present_factors().values():
        factor.weight.random_(*((-128, 128) if bits == 8 else (0, 256)))
        factor.scale.fill_(0.03 / 2 ** (bits - 1))
    return layer.eval()


def random_group(
    sizes: tuple[int, ...], inp: int, keep: float, dtype: torch.dtype, device: str = "cpu"
) -> list[nn.Module]:
    """Joint layers with random factors and pivots; the first one's name is to be told by the caller."""
    rank = rank_for("joint", sum(sizes), inp, keep)
    chosen = torch.zeros(sum(sizes), dtype=torch.bool).index_fill(0, torch.randperm(sum(sizes))[:rank], True)
    layers, first = [], 0
    for part in chosen.split(sizes):
        place = {"first": first, "own": int(part.sum()), "leader": "leader" if layers else None}
        layer = Joint.empty(inp, len(part), rank, False, dtype, **place).to_empty(device=device)
        layer.chosen.copy_(pack(part))
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
        layers.append(layer.eval())
        first += place["own"]
    return layers


def join(model: LlamaForCausalLM, keep: float, dtype: torch.dtype, device: str = "cpu") -> None:
    """Put joint layers in the places of q, k and v, and of gate and up."""
    for block in model.model.layers:
        for parent, names in ((block.self_attn, "q_proj k_proj v_proj"), (block.mlp, "gate_proj up_proj")):
            linears = [parent.get_submodule(name) for name in names.split()]
            sizes = tuple(linear.out_features for linear in linears)
            group = random_group(sizes, linears[0].in_features, keep, dtype, device)
            for name, layer in zip(names.split(), group, strict=True):
                layer.leader = layer.leader and names.split()[0]
                parent.set_submodule(name, layer)
    link(model)


def random_llama(form: str, keep: float, dtype: torch.dtype, device: str = "cpu", **config: int) -> LlamaForCausalLM:
    """A random Llama whose blocks' linears all have this form; `dense` leaves them as they are.

    joint: those that share an input are joined, the others pivoted.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=False)).to(dtype)
    rotary = LlamaForCausalLM(LlamaConfig(**{**config, "num_hidden_layers": 1, "vocab_size": 8})).model.rotary_emb
    model.model.rotary_emb = rotary.to(device)
    if form == "joint":
        join(model, keep, dtype, device)
    for name, linear in list(model.model.layers.named_modules(prefix="model.layers")):
        if form != "dense" and is_linear(linear) and linear.weight.is_meta:
            alone = "pivoted" if form == "joint" else form
            model.set_submodule(name, random_form(alone, *linear.weight.shape, keep, dtype, device))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                filled = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(std=0.02)
                setattr(module, name, nn.Parameter(filled if parameter.ndim > 1 else torch.ones_like(filled)))
    return model.requires_grad_(False).eval()
