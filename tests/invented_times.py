"""Times of layers as a test wants them."""

from slimrank.budget.bench import Bench, Measured
from slimrank.forms import FORMS


def invented(bench: Bench, beside: float = 0.5, head: float = 0.25) -> Measured:
    """A second for every number of a layer; `beside`: what a block takes beside its linears."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for layer in bench.layers:
        numbers = sum(
            FORMS[entry["form"]].count_parameters(*shape, entry) if entry else shape[0] * shape[1]
            for shape, entry in zip(layer.shapes, layer.entries, strict=True)
        )
        lines.setdefault(layer.name, []).append((layer.rank, float(numbers)))
    linears = sum(unit.parameters for unit in bench.model.units.values() if unit.block == 0)
    heads = {bits: head * bits / 16 for bits in bench.heads}
    return Measured(blocks=[linears + beside for _ in bench.firsts], heads=heads, lines=lines)
