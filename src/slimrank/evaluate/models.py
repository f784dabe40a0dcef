"""Evaluate several models on several texts, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slimrank import demo
from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate.likeness import distances
from slimrank.evaluate.perplexity import Perplexity, perplexity
from slimrank.evaluate.reference import Reference, reference_of
from slimrank.evaluate.results import ModelResult, count_parameters, stored_bytes, weight_bytes
from slimrank.evaluate.tasks import Tasks
from slimrank.forms import Experts, Form
from slimrank.forms.experts import layout_of
from slimrank.forms.linear import is_linear, shape_of
from slimrank.model.blocks import find_blocks
from slimrank.model.load import Loaded, load
from slimrank.runtime.memory import Limits
from slimrank.runtime.track import Track, no_track
from slimrank.texts.given import TokenRows, read_source, sources_of
from slimrank.texts.texts import Text
from slimrank.texts.tokens import SpecialTokens
from slimrank.texts.windows import check_window, context_length

Model = str | Path | Loaded | PreTrainedModel


def evaluate_models(
    models: Sequence[Model] | Mapping[str, Model],
    texts: Sequence[str | Path | Text | Any],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    window: int | None = None,
    max_windows: int | None = None,
    special_tokens: SpecialTokens = "text",
    device: str = "cpu",
    dtype: str = "float32",
    tasks: Sequence[str] = (),
    tasks_path: Path | None = None,
    limit: int | None = None,
    track: Track = no_track,
) -> list[ModelResult]:
    """Perplexity of each model on each text, and what the models lost against the first one: nats, and KL(first || it).

    Of a folder that compress wrote also how far each text is from the calibration text.

    models: hub ids, directories or `demo`, each in memory in its turn, and models in memory, which stay as they are:
    what slimrank.load gave, or transformers' own, such as compress's Result.model; by their names, if that is given.
    texts: SPECs, paths, what calibrate.read_text gave, or a datasets.Dataset with a column `text`.
    tokenizer: of models that come without one, by default the first model's.
    window: tokens a window, for all models alike; by default the first model's context, at most 2048.
    special_tokens: where the tokenizer's stand: before the text once, before every window, or nowhere ("none").
    device, dtype: of the models that are named.
    tasks: names of lm-eval's tasks, or of those whose files are in tasks_path; limit: items of each.

    Raises:
        UsageError: for invalid options.
        SlimrankError: if a model or text cannot be read or measured.
    """
    named = list(models.items() if isinstance(models, Mapping) else ((None, model) for model in models))
    specs = texts or ([] if tasks else demo.texts_of(named[0][1]))
    if not specs and not tasks:
        raise UsageError("--text is missing: give a text such as test.txt, file.jsonl:text or hub:name/config:split.")
    chosen = Tasks(tasks, tasks_path, limit) if tasks else None
    read = [read_one(one) for one in specs]
    options: dict[str, Any] = {"max_windows": max_windows, "special_tokens": special_tokens}
    results: list[ModelResult] = []
    for name, model in named:
        loaded = opened(model, name, tokenizer, dtype=dtype, device=device)
        tokenizer = tokenizer or loaded.tokenizer
        window = window or min(context_length(loaded.model.config) or 2048, 2048)
        check_window(window, loaded.model.config)
        if not results:
            first, why = followed(loaded) if read and len(named) > 1 else (None, None)
        measuring = options | {"window": window, "track": track}
        found = perplexities(loaded, read, first=first, is_first=not results, **measuring)
        far, said = distances(loaded, read, window=window, **options)
        scores = chosen.measure(loaded) if chosen else {}
        result = ModelResult(name or loaded.name, found, *sizes(loaded, model), scores, distances=far)
        results.append(replace(result, notes=(*(apart(result, results[0], why) if results else ()), *said)))
        if first and len(results) == 1 and isinstance(model, str | Path):
            first.let_go()
        del loaded  # before the next one comes
    return results


def read_one(text: Any) -> Text:
    """A text to evaluate on, by its SPEC, its path or its rows; it stays as it is if it was read before.

    Raises:
        UsageError: for what is no text, such as token ids, which are of one tokenizer alone.
    """
    (source,) = sources_of(text)
    found = read_source(source, part="evaluation")
    if isinstance(found, TokenRows):
        raise UsageError("Models are evaluated on text, not on token ids: give a file's path, a string or a Dataset.")
    return found


def opened(
    model: Model, name: str | None, tokenizer: PreTrainedTokenizerBase | None, *, dtype: str, device: str
) -> Loaded:
    """The model, loaded if it is not in memory; a UsageError for one without a tokenizer or in parts."""
    if isinstance(model, str | Path):
        return load(str(model), dtype=dtype, device=device)
    if isinstance(model, PreTrainedModel):
        name = name or model.config.name_or_path or type(model).__name__
        if tokenizer is None:
            raise UsageError(f"MODEL {name} comes without a tokenizer: give one by tokenizer=.")
        model = Loaded(name, model, tokenizer, model.dtype, None)
    offloaded = hasattr(model.model, "hf_device_map")  # accelerate then brings the weights
    if not offloaded and any(parameter.is_meta for parameter in model.model.parameters()):
        raise UsageError(
            f"MODEL {name or model.name} is not in memory as a whole: give the folder that it was written to."
        )
    return model


def followed(loaded: Loaded) -> tuple[Reference | None, str | None]:
    """What other models are compared with this one by, or why they cannot be."""
    try:
        return reference_of(loaded.model, Limits.of(None, str(loaded.model.device)).states), None
    except SlimrankError as error:
        return None, str(error)


def apart(result: ModelResult, first: ModelResult, why: str | None) -> tuple[str, ...]:
    """What could not be compared with the first model, a sentence a text; why: the first one's own reason."""
    notes = []
    for text, own in result.texts.items():
        if own.read != first.texts[text].read:
            notes.append(
                f"{result.name} reads {text} in other tokens than {first.name}: no KL, and nats of its own tokens."
            )
        elif own.kl is None:
            reason = why or "their vocabularies are not of one size."
            notes.append(f"There is no KL of {result.name} to {first.name} on {text}: {reason}")
    return tuple(notes)


def sizes(loaded: Loaded, model: Model) -> tuple[int, int, int]:
    """Parameters of the linears and of the whole model, and bytes on disk: of a model in memory, what it would take."""
    if loaded.directory and isinstance(model, str | Path):
        size = weight_bytes(loaded.directory)
    else:
        size = stored_bytes(loaded.model, loaded.dtype)
    return linear_parameters(loaded), count_parameters(loaded.model), size


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
            elif isinstance(child, Experts):
                total += child.count_parameters()
            elif is_linear(child):
                rows, columns = shape_of(child)
                total += rows * columns
            elif layout_of(child):
                total += sum(parameter.numel() for parameter in child.parameters(recurse=False) if parameter.ndim == 3)
            else:
                total += count(child)
        return total

    return count(find_blocks(loaded.model)[1])
