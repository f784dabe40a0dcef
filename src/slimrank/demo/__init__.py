"""The embedded model and text, so that a first run needs no network."""

from pathlib import Path
from typing import Literal

MODEL: Path = Path(__file__).parent / "model"
TEXT: Path = Path(__file__).parent / "text"

Part = Literal["calibration", "evaluation"]


def text(part: Part) -> Path:
    """The file of one part of the embedded text; the model was trained on neither."""
    return TEXT / f"{part}.txt"
