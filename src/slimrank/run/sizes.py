"""The sizes that a run's estimate counts from: of parts, of linears, of those that share an input."""

from torch import nn

from slimrank.forms.experts import unfolded
from slimrank.forms.linear import shape_of
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.model.units import Shape
from slimrank.recipe import Recipe
from slimrank.store.weights import Part


def shares_of(model: Compressible, recipe: Recipe) -> dict[str, float]:
    """Of all tokens, the share that reaches each linear: 1, but for an expert what the router sent it when tried."""
    experts = {} if recipe.experts == "all" else unfolded(model.decoder.model)
    return {name: experts[unit.mixture].share if unit.mixture in experts else 1.0 for name, unit in model.units.items()}


def part_bytes(decoder: Decoder) -> dict[Part, int]:
    """Bytes of every part of the model, in the dtype of the computation."""
    sizes: dict[Part, int] = dict.fromkeys(decoder.weights.parts, 0)
    for name, parameter in decoder.model.named_parameters():
        sizes[decoder.weights.part_of(name)] += parameter.nbytes
    return sizes


def inputs_of(block: dict[str, nn.Module]) -> list[int]:
    """Widths of the inputs that a block's linears read, those of one module and width taken as one."""
    return [width for _, width in groups_of(block)]


def stacks_of(block: dict[str, nn.Module]) -> list[list[Shape]]:
    """Shapes of a block's linears that have one parent module and input width, and so may share their input."""
    return [shapes for shapes in groups_of(block).values() if len(shapes) > 1]


def groups_of(block: dict[str, nn.Module]) -> dict[tuple[str, int], list[Shape]]:
    """Shapes of a block's linears by parent module and input width."""
    groups: dict[tuple[str, int], list[Shape]] = {}
    for name, module in block.items():
        shape = shape_of(module)
        groups.setdefault((name.rpartition(".")[0], shape[1]), []).append(shape)
    return groups


def stacked(shapes: list[Shape]) -> Shape:
    """The shape of the stacked matrices."""
    return sum(rows for rows, _ in shapes), shapes[0][1]


def m_n(shape: Shape) -> int:
    """Elements of a matrix."""
    return shape[0] * shape[1]
