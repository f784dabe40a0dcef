"""Weight-only quantization of the factors, stored in the same checkpoint format."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from slimrank.checkpoint import write_checkpoint
from slimrank.checkpoint.account import FILE as ACCOUNT
from slimrank.checkpoint.account import Account
from slimrank.errors import UsageError
from slimrank.forms import Embedding, Experts, Form, compressed_layers, form_of, has_bits, link
from slimrank.forms.quantized import BITS, groups_of
from slimrank.model.decoder import set_module
from slimrank.model.load import Loaded
from slimrank.plan import Plan
from slimrank.run.result import PLAN, card


def quantize(loaded: Loaded, out: Path, *, bits: int = 8, overwrite: bool = False) -> None:
    """Write the compressed model to the folder `out` with its factors in 8 or 4 bits.

    Raises:
        UsageError: for other bits, a model without compressed layers, or one that is quantized already.
        SlimrankError: naming a layer whose form does not support these bits.
    """
    layers = compressed_layers(loaded.model)
    if bits not in BITS:
        raise UsageError(f"--bits {bits} is unknown: choose 8, 4, 3 or 2.")
    if not layers or any(has_bits(entry) for entry in layers.values()):
        state = "has quantized factors already" if layers else "has no compressed layers"
        raise UsageError(f"MODEL {loaded.name} {state}: give what slimrank compress wrote.")
    forms = {name: module for name, module in loaded.model.named_modules() if isinstance(module, Form | Experts)}
    for name, form in forms.items():
        require_bits(name, form, bits)
    for name, form in forms.items():
        made = form.mapped(lambda one: quantized(one, bits)) if isinstance(form, Experts) else quantized(form, bits)
        set_module(loaded.model, name, made)
    link(loaded.model)
    write_checkpoint(
        loaded.model, out, layers=compressed_layers(loaded.model), dtype=loaded.dtype, source=loaded.directory,
        tokenizer=loaded.tokenizer, extras=records(loaded, bits, out.name), overwrite=overwrite,
    )  # fmt: skip


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
    notes = [*plan.notes, f"The factors are quantized to {bits} bits (slimrank quantize)."]
    plan = plan.model_copy(update={"linears": linears, "notes": notes})
    parameters = account.parameters["dense"], account.parameters["compressed"]
    return {
        PLAN: plan.to_json(),
        ACCOUNT: account.to_json(),
        "README.md": card(name, plan, parameters, held_out=account.held_out),
    }


@torch.no_grad()
def quantized(form: Form, bits: int, group: int | None = None) -> Form:
    """A copy of the form with quantized factors; group: inputs that share a scale, as Form.use_bits."""
    copied = copy.deepcopy(form)
    copied.use_bits(bits, group)
    stored = copied.present_factors()
    for name, linear in form.present_factors().items():
        stored[name].store(*rounded(linear.weight, bits, copied.per_scale))
    return copied


@torch.no_grad()
def quantized_embedding(plain: nn.Embedding, bits: int, group: int | None = None) -> Embedding:
    """The embedding in whole numbers; group: inputs that share a scale, as Form.use_bits."""
    made = Embedding(plain, bits, group)
    made.table.store(*rounded(plain.weight, bits, made.per_scale))
    return made


def rounded(weight: Tensor, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """Whole numbers (out, in) int8 nearest to weight / scale, and the scales (out, groups) in weight's dtype.

    group: inputs that share a scale, None for a whole row. Such a group's largest number becomes 2^(bits-1) - 1/2.
    """
    columns, low, high = weight.shape[1], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    size, groups = group or max(columns, 1), groups_of(columns, group)
    padded = nn.functional.pad(weight.float(), (0, groups * size - columns)).unflatten(1, (groups, size))
    scale = (padded.abs().amax(-1) / (high + 0.5)).clamp(min=torch.finfo(weight.dtype).tiny).to(weight.dtype)
    numbers = (padded / scale.float()[..., None]).round().clamp(low, high).to(torch.int8)
    return numbers.flatten(1)[:, :columns], scale
