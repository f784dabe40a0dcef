"""Refiners improve the factors after truncation. A new one is a file here and a line in REFINERS."""

from slimrank.refine.anchored import Anchored
from slimrank.refine.base import Refiner
from slimrank.refine.distill import Distill
from slimrank.refine.lora import Lora
from slimrank.refine.round import Round
from slimrank.refine.scales import Scales
from slimrank.refine.temperature import Temperature
from slimrank.refine.update import Update

REFINERS: dict[str, type[Refiner]] = {
    "anchored": Anchored,
    "round": Round,
    "update": Update,
    "lora": Lora,
    "distill": Distill,
    "scales": Scales,
    "temperature": Temperature,
}

__all__ = ["REFINERS", "Refiner"]
