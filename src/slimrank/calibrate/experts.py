"""What calibration sees of experts: tokens routed to each, and moments completed from all experts of a layer.

Few tokens reach an expert, so its moments are shrunk toward the layer's. With n tokens seen, the sum S of x x^T over
them, and P the mean of x x^T over the tokens of all experts of the layer and of the same role,

    S' = S + k P,  n' = n + k,  so that  S'/n' = (n S/n + k P) / (n + k),  k = PRIOR width.

An expert that saw none has the layer's mean alone. The same holds for the gradients at an expert's outputs.

A loss is paid for each token of the text, while an expert sees some: its input moments are therefore given as
S'/n' (routed + 1), over all T tokens of the text, so that their mean is that of x x^T where the token is routed to the
expert and of 0 elsewhere. The one token more is for an expert that no token of the calibration text reached.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from slimrank.calibrate.moments import InputMoments, Moments, OutputMoments
from slimrank.errors import SlimrankError
from slimrank.forms.experts import Unfolded, unfolded, watching
from slimrank.forms.experts.fused import Rows
from slimrank.model.decoder import Decoder
from slimrank.numerics.gram_sum import GramSum

PRIOR = 0.25
"""Tokens of the layer's mean, for each channel of a Gram, that an expert's own are completed by.

Where the tokens of a real model's layer were clustered as if by a router, and 18 to 72 of a cluster's tokens calibrated
it, a quarter to one token for each channel lost least on its other tokens, and the loss was flat there.
"""


def prior_tokens(width: int) -> float:
    """k, for a Gram of that width."""
    return PRIOR * width


@dataclass
class Routed:
    """counts: by the name of a module of experts, the tokens routed to each (experts,) float64; tokens: of the text."""

    counts: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0


def experts_of(decoder: Decoder, index: int) -> dict[str, Unfolded]:
    """The modules of experts in a block, by full name."""
    prefix = f"{decoder.prefix}.{index}."
    return {name: module for name, module in unfolded(decoder.model).items() if name.startswith(prefix)}


@contextmanager
def counted(experts: Mapping[str, Unfolded], every: bool = False) -> Iterator[Routed]:
    """Count the tokens routed to each expert.

    every: send all tokens through all experts, whose outputs for those not routed to them are weighted by 0. Where an
    expert is given its tokens multiplied by the router's weights, the others are 0 and add nothing.
    """
    names, routed = {module: name for name, module in experts.items()}, Routed()

    def watch(module: Unfolded, hidden: Tensor, rows: Rows) -> Rows:
        number, name = module.layout.experts, names[module]
        counts = torch.zeros(number, dtype=torch.float64)
        for expert, tokens in rows.items():
            counts[expert] = len(tokens)
        if name == next(iter(experts)):
            routed.tokens += len(hidden) if module.layout.arguments else len(hidden) // number
        routed.counts[name] = routed.counts.get(name, torch.zeros_like(counts)) + counts
        if not every:
            return rows
        tokens = torch.arange(len(hidden) if module.layout.arguments else len(hidden) // number, device=hidden.device)
        return dict.fromkeys(range(number), tokens)

    with watching(list(experts.values()), watch):
        yield routed


def add_up_counts(decoder: Decoder, routed: Routed) -> None:
    """Add up the counts over all processes, in place."""
    for name in sorted(routed.counts):
        counts = routed.counts[name].to(decoder.device)
        decoder.world.add_up(counts)
        routed.counts[name] = counts.cpu()
    routed.tokens = int(decoder.world.total(routed.tokens))


def complete_inputs(
    moments: Moments, experts: Mapping[str, Unfolded], routed: Routed, linears: Mapping[str, nn.Module]
) -> None:
    """Shrink the experts' input moments toward their layer's, and give those without a token the layer's, in place.

    Raises:
        SlimrankError: if no token reached any expert of a module.
    """
    inputs = dict(moments.inputs)
    for names in alike(experts, linears):
        seen = [inputs[name] for name in names if name in inputs and inputs[name].tokens]
        if not seen:
            raise SlimrankError(f"No calibration token reached {names[0]} or another expert beside it.")
        width, tokens = seen[0].sums.width, sum(one.tokens for one in seen)
        k = prior_tokens(width)
        pool, absolute = sum_of([one.sums.packed for one in seen], k / tokens), sum(one.absolute for one in seen)
        for name in names:
            layer, _, rest = name.removesuffix(f".{name.rpartition('.')[2]}").rpartition(".")
            own = inputs.get(name) or InputMoments.empty(width, seen[0].absolute.device)
            count = int(routed.counts[layer][int(rest)])
            scale = (count + 1) / (own.tokens + k)
            packed = own.sums.packed.add_(pool).mul_(scale)
            inputs[name] = replace(
                own,
                sums=GramSum(packed, width, own.sums.device),
                absolute=(own.absolute + k / tokens * absolute) * scale,
                tokens=routed.tokens,
                routed=count,
            )
            moments.leader[name] = name
    moments.inputs = inputs


def complete_outputs(
    outputs: dict[str, OutputMoments], experts: Mapping[str, Unfolded], linears: Mapping[str, nn.Module]
) -> None:
    """The same for the gradients at the experts' outputs, as if k tokens more of the layer's mean had been seen."""
    for names in alike(experts, linears):
        seen = [outputs[name] for name in names if name in outputs and outputs[name].tokens]
        if not seen:
            continue
        width, tokens = seen[0].sums.width, sum(one.tokens for one in seen)
        k = round(prior_tokens(width)) or 1
        pool = sum_of([one.sums.packed for one in seen], k / tokens)
        rows, fourth = (
            k / tokens * sum(values) for values in zip(*((o.fisher_rows, o.fourth) for o in seen), strict=True)
        )
        for name in names:
            own = outputs.get(name) or OutputMoments.empty(width, seen[0].fourth.device)
            own.sums.packed.add_(pool)
            own.fisher_rows += rows
            own.fourth += fourth
            own.tokens += k
            outputs[name] = own


def alike(experts: Mapping[str, Unfolded], linears: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """By module and role, the names of the experts' linears that are among `linears`."""
    for name, module in experts.items():
        for role in module.layout.roles:
            names = [f"{name}.{number}.{role}" for number in range(module.layout.experts)]
            chosen = [one for one in names if one in linears]
            if chosen:
                yield chosen


def sum_of(parts: list[Tensor], scale: float) -> Tensor:
    """The sum of tensors, times a number, a new tensor."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total.mul_(scale)


def windows_of(rows: Tensor, batch: torch.Size) -> list[int]:
    """How many of these tokens, in ascending places among (windows, tokens) flattened, each window has."""
    counts: list[int] = torch.bincount(rows // batch[1], minlength=batch[0]).tolist()
    return counts
