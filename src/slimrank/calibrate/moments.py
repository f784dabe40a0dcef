"""Moments: what calibration saw at every linear and every block, as plain tensors that are saved and loaded whole."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slimrank.errors import SlimrankError


@dataclass
class InputMoments:
    """What reached one distinct input of width n.

    gram: H = sum x x^T (n, n) float64; absolute: sum |x| (n,) float64; tokens: the number of summands.
    """

    gram: Tensor
    absolute: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "InputMoments":
        """Before the first token."""
        zeros = torch.zeros(width, width, dtype=torch.float64, device=device)
        return cls(zeros, torch.zeros(width, dtype=torch.float64, device=device))

    def add(self, x: Tensor) -> None:
        """Add the tokens of x (..., n); products in float32, sums in float64."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        self.gram += (x.T @ x).double()
        self.absolute += x.abs().sum(0).double()
        self.tokens += len(x)


@dataclass
class OutputMoments:
    """What the loss's gradient g (nats, summed over tokens) was at a linear's output of width m.

    gram: sum g g^T (m, m) float64; fisher_rows: sum over windows of the row sums of (dL/dW)^2 (m,);
    gradient_norm: |sum over windows of dL/dW|_F; fourth: sum |g|^4; tokens, windows: the number of summands.
    """

    gram: Tensor
    fisher_rows: Tensor
    gradient_norm: float = 0.0
    fourth: float = 0.0
    tokens: int = 0
    windows: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "OutputMoments":
        """Before the first token."""
        zeros = torch.zeros(width, width, dtype=torch.float64, device=device)
        return cls(zeros, zeros.new_zeros(width))


@dataclass
class BlockMoments:
    """A block's output hidden states: gram (d, d) float64, and the summed cosine between its input and output."""

    gram: Tensor
    cosine: float = 0.0
    tokens: int = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add the tokens of a batch (batch, tokens, d)."""
        before, after = (h.detach().reshape(-1, h.shape[-1]).float() for h in (before, after))
        self.gram += (after.T @ after).double()
        self.cosine += torch.nn.functional.cosine_similarity(before, after, dim=-1).double().sum().item()
        self.tokens += len(after)


@dataclass
class Moments:
    """Everything calibration keeps.

    inputs: by the first linear that saw an input; leader: of every linear, the linear whose input it shares;
    outputs: by linear, empty unless gradients were asked for; blocks: one per decoder block.
    """

    inputs: dict[str, InputMoments] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, OutputMoments] = field(default_factory=dict)
    blocks: list[BlockMoments] = field(default_factory=list)

    def input_of(self, linear: str) -> InputMoments:
        """The moments of a linear's input."""
        if linear not in self.leader:
            raise SlimrankError(f"No calibration token reached {linear}: calibrate on more text or leave it dense.")
        return self.inputs[self.leader[linear]]

    def short_of_tokens(self) -> list[str]:
        """The linears whose Gram is wider than the tokens it was summed over."""
        short = {name for name, i in self.inputs.items() if i.tokens < len(i.gram)}
        return [linear for linear, leader in self.leader.items() if leader in short]

    def save(self, path: Path) -> None:
        """One safetensors file."""
        tensors: dict[str, Tensor] = {}
        for group, items in (
            ("inputs", self.inputs),
            ("outputs", self.outputs),
            ("blocks", dict(enumerate(self.blocks))),
        ):
            for key, item in items.items():
                for name, value in vars(item).items():
                    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                    tensors[f"{group}/{key}/{name}"] = tensor.contiguous().cpu()
        save_file(tensors, path, metadata={f"leader/{k}": v for k, v in self.leader.items()})

    @classmethod
    def load(cls, path: Path) -> "Moments":
        """The inverse of save."""
        groups: dict[str, dict[str, dict[str, Tensor]]] = {"inputs": {}, "outputs": {}, "blocks": {}}
        with safe_open(path, "pt") as file:
            for full in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                group, key, name = full.split("/")
                groups[group].setdefault(key, {})[name] = file.get_tensor(full)
            leader = {k.removeprefix("leader/"): v for k, v in (file.metadata() or {}).items()}
        return cls(
            inputs={k: InputMoments(**_scalars(v)) for k, v in groups["inputs"].items()},
            leader=leader,
            outputs={k: OutputMoments(**_scalars(v)) for k, v in groups["outputs"].items()},
            blocks=[BlockMoments(**_scalars(groups["blocks"][k])) for k in sorted(groups["blocks"], key=int)],
        )


def _scalars(tensors: dict[str, Tensor]) -> dict[str, Any]:
    counts = {"tokens", "windows"}
    return {
        name: tensor if tensor.ndim else (int(tensor) if name in counts else float(tensor))
        for name, tensor in tensors.items()
    }
