"""Evaluate several models on several texts, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from slimrank.calibrate.texts import Text, read_text
from slimrank.calibrate.windows import check_window, context_length
from slimrank.errors import UsageError
from slimrank.evaluate.perplexity import Perplexity, perplexity
from slimrank.evaluate.results import ModelResult, count_parameters, weight_bytes
from slimrank.forms.base import Form
from slimrank.integrations.lm_eval import Tasks
from slimrank.linear import is_linear, shape_of
from slimrank.load import Loaded, load
from slimrank.model import find_blocks
from slimrank.progress import Track, no_track


def evaluate_models(
    models: Sequence[str],
    texts: Sequence[str],
    *,
    window: int | None = None,
    max_windows: int | None = None,
    special_tokens: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    tasks: Sequence[str] = (),
    tasks_path: Path | None = None,
    limit: int | None = None,
    track: Track = no_track,
) -> list[ModelResult]:
    """Perplexity of each model (see slimrank.load) on each text SPEC, one model in memory at a time.

    window defaults to the first model's context, at most 2048, for all models alike. tasks: names of the harness's
    tasks, or of those whose files are in tasks_path; limit: items of each.
    """
    chosen = Tasks(tasks, tasks_path, limit) if tasks else None
    if not texts and not tasks and models[0] != "demo":
        raise UsageError("--text is missing: give a text such as test.txt, file.jsonl:text or hub:name/config:split.")
    read = [read_text(spec, part="evaluation") for spec in texts or ([] if tasks else ["demo"])]
    results = []
    for name in models:
        loaded = load(name, dtype=dtype, device=device)
        window = window or min(context_length(loaded.model.config) or 2048, 2048)
        check_window(window, loaded.model.config)
        measured = perplexities(
            loaded, read, window=window, max_windows=max_windows, special_tokens=special_tokens, track=track
        )
        parameters = count_parameters(loaded.model)
        scores = chosen.measure(loaded) if chosen else {}
        size = stored_bytes(loaded)
        results.append(ModelResult(name, measured, linear_parameters(loaded), parameters, size, scores))
    return results


def perplexities(loaded: Loaded, texts: Sequence[Text], *, window: int, **options: Any) -> dict[str, Perplexity]:
    """The perplexity of each text by its source; `options` are those of `perplexity`."""
    return {text.source: perplexity(loaded.model, loaded.tokenizer, text, window=window, **options) for text in texts}


def linear_parameters(loaded: Loaded) -> int:
    """Numbers in the linears of the decoder blocks, dense or factorised, without biases, index storage included."""

    def count(module: nn.Module) -> int:
        total = 0
        for child in module.children():
            if isinstance(child, Form):
                total += child.count_parameters(child.out_features, child.in_features, child.entry())
            elif is_linear(child):
                rows, columns = shape_of(child)
                total += rows * columns
            else:
                total += count(child)
        return total

    return count(find_blocks(loaded.model)[1])


def stored_bytes(loaded: Loaded) -> int:
    """The weights' bytes on disk; for a hub model, what they take in its stored dtype."""
    if loaded.directory:
        return weight_bytes(loaded.directory)
    return count_parameters(loaded.model) * loaded.dtype.itemsize
