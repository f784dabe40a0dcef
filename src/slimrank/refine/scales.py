"""Training of what stays floats in a rounded model: scales, norms and biases, towards the dense model's predictions."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from slimrank.forms.quantized import QuantizedLinear
from slimrank.model.decoder import Decoder
from slimrank.refine.distill import Distill
from slimrank.refine.training import Group


class Scales(Distill):
    """`distill` of the scales of whole numbers, which stay as they are, and of norms and biases.

    lr: of a scale, as a share of the mean scale of its matrix; the other options are those of `distill`. As the second
    phase of EfficientQAT (arXiv 2407.11062) trains them.
    """

    name: Literal["scales"] = "scales"  # type: ignore[assignment]
    needs_floats: ClassVar[bool] = False
    doing: ClassVar[str] = "training of scales"

    tokens: Annotated[int, Field(ge=1)] = 65_536
    batch: Annotated[int, Field(ge=1)] = 2048
    lr: Annotated[float, Field(gt=0)] = 0.002

    def groups(self, decoder: Decoder, divergence: float) -> list[Group]:
        """The scales of a matrix have one rate; norms and biases vector_lr."""
        vectors = [p for p in decoder.model.parameters() if p.ndim == 1]
        scales = [Group([scale], self.lr * scale.abs().mean().item()) for scale in scales_of(decoder.model)]
        return [*scales, Group(vectors, self.vector_lr)]


def scales_of(model: nn.Module) -> list[Tensor]:
    """The scales (rows, groups) of every rounded matrix, embedding and head included."""
    return [module.scale for module in model.modules() if isinstance(module, QuantizedLinear) and module.scale.numel()]
