"""Compress Hugging Face causal language models by SVD; importing it lets transformers load such checkpoints."""

import sys
from importlib.metadata import PackageNotFoundError, version

if "slimrank_command" not in sys.modules:
    import slimrank.integrations.transformers  # noqa: F401  (registers the quantization method "slimrank")
    from slimrank.compression import compress
    from slimrank.evaluate import evaluate_models
    from slimrank.load import Loaded, load
    from slimrank.optimize import optimize
    from slimrank.plan import Plan
    from slimrank.recipe import Recipe, load_recipe, shipped_recipes
    from slimrank.result import Result

try:
    __version__ = version("slimrank")
except PackageNotFoundError:
    __version__ = "0+source"

__all__ = [
    "Loaded",
    "Plan",
    "Recipe",
    "Result",
    "compress",
    "evaluate_models",
    "load",
    "load_recipe",
    "optimize",
    "shipped_recipes",
]
