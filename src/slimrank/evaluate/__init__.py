"""What a model is worth: perplexity, what it lost against another, parameters, bytes."""

from slimrank.evaluate.mean import Mean
from slimrank.evaluate.models import evaluate_models, perplexities
from slimrank.evaluate.perplexity import Perplexity, perplexity
from slimrank.evaluate.reference import Reference
from slimrank.evaluate.results import (
    ModelResult,
    count_parameters,
    stored_bytes,
    text_json,
    to_json,
    weight_bytes,
)

__all__ = [
    "Mean",
    "ModelResult",
    "Perplexity",
    "Reference",
    "count_parameters",
    "evaluate_models",
    "perplexities",
    "perplexity",
    "stored_bytes",
    "text_json",
    "to_json",
    "weight_bytes",
]
