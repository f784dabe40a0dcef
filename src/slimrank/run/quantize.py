"""Weights in few bits, rounded to nearest without calibration, stored in the same checkpoint format."""

import copy
from pathlib import Path

import torch
from torch import nn

from slimrank.checkpoint import write_checkpoint
from slimrank.checkpoint.account import FILE as ACCOUNT
from slimrank.checkpoint.account import Account
from slimrank.checkpoint.register import describe
from slimrank.errors import UsageError
from slimrank.forms import Dense, Experts, Form, compressed_layers, form_of, has_bits, link
from slimrank.forms.experts import layout_of
from slimrank.forms.linear import bias_of, weight_of
from slimrank.forms.quantized import BITS
from slimrank.model.blocks import find_blocks
from slimrank.model.compressible import plain_ends
from slimrank.model.load import Loaded
from slimrank.model.modules import set_module
from slimrank.plan import Plan
from slimrank.refine.ends import end_grid, nearest, round_ends
from slimrank.rounding.grid import Grid
from slimrank.run.result import PLAN, card
from slimrank.serve.fold import outer_linears


def quantize(
    loaded: Loaded,
    out: Path,
    *,
    bits: int = 8,
    group: int | None = None,
    ends: int | None = 8,
    overwrite: bool = False,
) -> list[str]:
    """Write the model, dense or compressed, to the folder `out` in few bits, rounded to nearest; returns notes.

    Every linear of the blocks, or its factors, has numbers of `bits` bits, `group` inputs sharing a scale (as
    Form.use_bits); embedding and head have `ends` bits, None to leave them.

    Raises:
        UsageError: for other bits, or a model that is quantized already.
        SlimrankError: naming a layer whose form does not support these bits.
    """
    model = loaded.model
    for option, width in (("bits", bits), *([] if ends is None else [("ends", ends)])):
        if width not in BITS:
            raise UsageError(f"--{option} {width} is unknown: choose 8, 4, 3 or 2.")
    if any(has_bits(entry) for entry in compressed_layers(model).values()):
        raise UsageError(f"MODEL {loaded.name} has layers of few bits already: give what they were made from.")
    prefix = f"{find_blocks(model)[0]}."
    inside = {name: module for name, module in outer_linears(model) if name.startswith(prefix)}
    layers = inside | {name: module for name, module in model.named_modules() if isinstance(module, Experts)}
    for name, layer in layers.items():
        if isinstance(layer, Form | Experts):
            require_bits(name, layer, bits)
    for name, layer in layers.items():
        set_module(model, name, in_bits(layer, bits, group))
    link(model)
    if ends is not None:
        round_ends(model, dict.fromkeys(plain_ends(model), end_grid(ends)))
    describe(model)
    write_checkpoint(
        model, out, layers=compressed_layers(model), dtype=loaded.dtype, source=loaded.files,
        tokenizer=loaded.tokenizer, extras=records(loaded, bits, out.name), overwrite=overwrite,
    )  # fmt: skip
    fused = [name for name, module in model.named_modules() if layout_of(module)]
    return [f"The experts {fused[0]} and others like them stay floats: compress the model first."] if fused else []


def in_bits(layer: nn.Module, bits: int, group: int | None) -> nn.Module:
    """A linear, a form or experts in whole numbers."""
    if isinstance(layer, Experts):
        return layer.mapped(lambda one: quantized(one, bits, group))
    form = layer if isinstance(layer, Form) else Dense.from_dense(weight_of(layer).detach(), bias_of(layer))
    return quantized(form, bits, group)


def require_bits(name: str, form: Form | Experts, bits: int) -> None:
    """Raise a SlimrankError where the layer, or an expert of it, can't have factors of so many bits."""
    entries = form.entries() if isinstance(form, Experts) else [form.entry()]
    for entry in entries:
        form_of(name, entry | {"bits": bits}, 0)


def records(loaded: Loaded, bits: int, name: str) -> dict[str, str]:
    """Files of a compressed checkpoint by path: the plan with the quantized layers, the account and the model card."""
    folder, layers = loaded.directory, compressed_layers(loaded.model)
    if folder is None or not (folder / PLAN).is_file():
        return {}
    plan, account = Plan.load(folder / PLAN), Account.load(folder)
    linears = {path: linear.built(layers.get(path)) for path, linear in plan.linears.items()}
    notes = [*plan.notes, f"Rounded to {bits} bits (slimrank quantize)."]
    ends = {path: entry["bits"] for path, entry in layers.items() if path not in linears and "bits" in entry}
    plan = plan.model_copy(update={"linears": linears, "notes": notes, "ends": ends})
    parameters = account.parameters["dense"], account.parameters["compressed"]
    return {
        PLAN: plan.to_json(),
        ACCOUNT: account.to_json(),
        "README.md": card(name, plan, parameters, held_out=account.held_out),
    }


@torch.no_grad()
def quantized(form: Form, bits: int, group: int | None = None) -> Form:
    """A copy of the form with factors in whole numbers; group: inputs that share a scale, as Form.use_bits."""
    copied = copy.deepcopy(form)
    copied.use_bits(bits, group)
    stored = copied.present_factors()
    for name, linear in form.present_factors().items():
        if linear.weight.numel():
            rounded = nearest(linear.weight, Grid(bits, copied.per_scale))
            stored[name].store(rounded.numbers, rounded.scale)
        else:  # of rank 0
            stored[name].scale.zero_()
    return copied
