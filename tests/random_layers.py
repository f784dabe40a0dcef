"""Single layers of random factors, in floats or in whole numbers of few bits."""

import torch
from torch import Tensor

from slimrank.forms import FORMS, Form, KeptColumns
from slimrank.forms.quantized import QuantizedLinear


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def layer(form: str, out: int, inp: int, rank: int, biased: bool = False) -> Form:
    """A layer whose outputs are about as large as its inputs; of `columns`, a third are kept."""
    bias = random(out, seed=1) if biased else None
    left, right = random(out, rank), random(rank, inp) / (max(rank, 1) * inp) ** 0.5
    if form == "columns":
        kept = torch.randperm(inp, generator=torch.Generator().manual_seed(3))[: inp // 3].sort().values
        return KeptColumns.from_columns(
            random(out, len(kept)) / inp**0.5, left, right[:, : inp - len(kept)], kept, bias
        )
    return FORMS[form].from_low_rank(left, right, bias)


def of_few_bits(form: Form, bits: int, group: int | None = None) -> Form:
    """The form with random whole numbers in the places of its factors', whose scales make them about as large."""
    before = {name: factor.weight.detach() for name, factor in form.present_factors().items()}
    form.use_bits(bits, group)
    for name, factor in form.present_factors().items():
        fill(factor, before[name].square().mean().sqrt().nan_to_num().item())
    return form


def fill(factor: QuantizedLinear, size: float) -> None:
    """Every number that the bits can hold, at random, and a scale for each group whose products are of this size."""
    generator, limit = torch.Generator().manual_seed(factor.in_features + factor.bits), 2 ** (factor.bits - 1)
    shape = factor.out_features, factor.in_features
    numbers = torch.randint(-limit, limit, shape, generator=generator).to(torch.int8)
    scale = torch.rand(factor.scale.shape, generator=generator) + 0.5
    factor.store(numbers.to(factor.weight.device), scale * size * 1.7 / limit)
