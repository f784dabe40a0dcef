"""What a model is worth: perplexity, parameters, bytes."""

from slimrank.evaluate.models import evaluate_models, perplexities
from slimrank.evaluate.perplexity import Perplexity, perplexity
from slimrank.evaluate.results import ModelResult, count_parameters, to_json, weight_bytes

__all__ = [
    "ModelResult",
    "Perplexity",
    "count_parameters",
    "evaluate_models",
    "perplexities",
    "perplexity",
    "to_json",
    "weight_bytes",
]
