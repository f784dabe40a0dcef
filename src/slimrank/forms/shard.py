"""What one device computes of a linear that is split over several."""

from typing import Any

from torch import Tensor, nn

from slimrank.forms.outputs import Outputs


class Shard(nn.Module):
    """Some outputs of a linear, computed from some of its inputs; summed over the inputs' parts, they are its outputs.

    A server that fuses linears which read one tensor stacks their input factors into one product (see
    slimrank.serve.shards). So a shard has up to two steps: h = `input_factor` x, which the server computes, and
    y = forward(h), without the bias. h comes from one of three places:

    - an input factor (r, inputs here): h (..., r) is its product with x;
    - leader: the name of another linear, whose h this one reads too;
    - neither: h is x (..., inputs here) itself.

    Factors are an nn.Linear or a QuantizedLinear each, as slimrank.forms.quantized.picked gives them; the server may
    put kernels of its own in the place of the latter.
    """

    input_factor: Any

    def __init__(self, input_factor: nn.Module | None = None, leader: str | None = None) -> None:
        super().__init__()
        self.input_factor = input_factor
        self.leader = leader
        self.reads_input = input_factor is None and leader is None

    def take_input_factor(self) -> Any:
        """The input factor, which this shard then no longer holds."""
        factor, self.input_factor = self.input_factor, None
        return factor

    def forward(self, h: Tensor) -> Tensor:
        """Map h to y (..., outputs here)."""
        raise NotImplementedError

    def outputs(self) -> Outputs | None:
        """How they follow from the product with the input factor; None where only `forward` says it."""
        return None


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter that isn't trained, whole numbers included, so that it moves with its module."""
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)
