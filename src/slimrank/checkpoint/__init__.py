"""The Hugging Face directory of a compressed model."""

from slimrank.checkpoint.card import model_card
from slimrank.checkpoint.files import check_free, discard, find, locked, place_of, recover, write_text
from slimrank.checkpoint.manifest import verify
from slimrank.checkpoint.write import write_checkpoint

__all__ = [
    "check_free",
    "discard",
    "find",
    "locked",
    "model_card",
    "place_of",
    "recover",
    "verify",
    "write_checkpoint",
    "write_text",
]
