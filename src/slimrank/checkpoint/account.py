"""The account of a run: what was measured on the way, beside the plan; the report is made from the two."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from slimrank.errors import UsageError
from slimrank.numerics.frequencies import Frequencies

VERSION = 1
FILE = "slimrank/account.json"


class CurvePoints(BaseModel):
    """A linear's spectrum at some ranks, counted from 1.

    singular: the value at each of the ranks as a share of the first; error: what a cut there loses, as a share of the
    output's norm in the metric.
    """

    model_config = ConfigDict(extra="forbid")

    ranks: list[int]
    singular: list[float]
    error: list[float]


class HeldOut(BaseModel):
    """The dense and the compressed model on windows of the calibration text that nothing was fitted to.

    tokens: how many; dense, compressed: perplexities; divergence: KL(dense || compressed) in nats a token. As computed:
    before the weights were rounded to the stored dtype.
    """

    model_config = ConfigDict(extra="forbid")

    tokens: int
    dense: float
    compressed: float
    divergence: float

    def sentence(self) -> str:
        """For people."""
        return (
            f"perplexity {self.dense:.2f} -> {self.compressed:.2f}, KL {self.divergence:.4f} nats a token, on "
            f"{self.tokens:,} held-out tokens of the calibration text"
        )


class Account(BaseModel):
    """What a run measured.

    held_out: the models' quality, None where there was no held-out window; computed, stored: dtypes; parameters: of the
    whole model, "dense" and "compressed"; dense_bytes: of the dense weights; seconds: by stage; memory: peak bytes;
    resumed: whether the run was stopped and went on, so that both are of its last process alone; calibration: the
    tokens of each of its texts, none where an older version kept none.
    """

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    model: str
    device: str
    computed: str
    stored: str
    parameters: dict[str, int]
    dense_bytes: int
    seconds: dict[str, float]
    memory: int
    resumed: bool = False
    versions: dict[str, str]
    held_out: HeldOut | None = None
    calibration: list[Frequencies] = []
    curves: dict[str, CurvePoints]

    def to_json(self) -> str:
        """The account's file: a line a linear and a calibration text."""
        tokens = ",\n".join(f"  {one.model_dump_json()}" for one in self.calibration)
        head = json.dumps(self.model_dump(exclude={"curves", "calibration"}), indent=1).removesuffix("\n}")
        curves = ",\n".join(f"  {json.dumps(name)}: {curve.model_dump_json()}" for name, curve in self.curves.items())
        return f'{head},\n "calibration": [\n{tokens}\n ],\n "curves": {{\n{curves}\n }}\n}}\n'

    @classmethod
    def load(cls, folder: Path) -> "Account":
        """The account of the checkpoint in `folder`.

        Raises:
            UsageError: if there is none, or none that this version reads.
        """
        path = folder / FILE
        if not path.is_file():
            raise UsageError(f"{path} is missing, which compress writes beside the weights: compress the model again.")
        try:
            account = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path} is damaged or of another version of slimrank: compress the model again."
            ) from error
        if account.version != VERSION:
            raise UsageError(f"{path} has version {account.version}, this slimrank reads {VERSION}: update slimrank.")
        return account
