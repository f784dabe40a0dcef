"""Compress Hugging Face causal language models by SVD; importing it lets transformers load such checkpoints."""

import sys
from importlib.metadata import PackageNotFoundError, version

# After `import slimrank` transformers loads compressed checkpoints. That takes importing transformers, for seconds that
# `slimrank --help` must not wait. Only a hook in Python's import system could put it off until a caller imports
# transformers, which would hide more than this: the console command imports what it uses by itself.
if "slimrank_command" not in sys.modules:
    import slimrank.checkpoint.register  # noqa: F401  (registers the quantization method "slimrank")
    from slimrank.evaluate import evaluate_models
    from slimrank.model.load import Loaded, load
    from slimrank.plan import Plan
    from slimrank.recipe import Recipe, load_recipe, shipped_recipes
    from slimrank.run.compress import compress
    from slimrank.run.result import Result
    from slimrank.serve.optimize import optimize

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
