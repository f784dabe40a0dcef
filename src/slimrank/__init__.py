"""Compress Hugging Face causal language models by SVD; importing it lets transformers load such checkpoints."""

import slimrank.integrations.transformers  # noqa: F401  (registers the quantization method "slimrank")
