"""The embedded model and texts, so that a first run needs no network: all that the name `demo` means."""

from pathlib import Path
from typing import Literal

NAME = "demo"
MODEL: Path = Path(__file__).parent / "model"
TEXT: Path = Path(__file__).parent / "text"

Part = Literal["calibration", "evaluation"]


def text(part: Part) -> Path:
    """The file of one part of the embedded text; the model was trained on neither."""
    return TEXT / f"{part}.txt"


def source(part: Part) -> str:
    """What a record says a part of the embedded text came from."""
    return f"{NAME} ({part})"


def model_place(model: object) -> str:
    """Where a MODEL is: a folder for the demo, its own name for any other."""
    return str(MODEL) if model == NAME else str(model)


def texts_of(model: object) -> list[str]:
    """The SPECs to read where no text is named: the demo's own for the demo model, none for any other."""
    return [NAME] if model == NAME else []
