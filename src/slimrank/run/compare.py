"""Compare recipes at several budgets on one model, sharing the calibration and each metric's spectra."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from slimrank.budget.asked import BudgetOptions
from slimrank.calibrate import Text
from slimrank.forms.experts import fold
from slimrank.model.compressible import Compressible
from slimrank.model.load import Loaded
from slimrank.recipe import Recipe
from slimrank.run.comparison import Asked, Comparison
from slimrank.run.estimate import Announce, silent
from slimrank.run.job import opened
from slimrank.run.resume import identify, identity_of, progress_folder, progress_of
from slimrank.run.rows import Row
from slimrank.runtime.memory import Limits, give_memory_back
from slimrank.runtime.track import Track, no_track
from slimrank.store.disk import size_of
from slimrank.store.pieces import DiskPieces, MemoryPieces
from slimrank.texts.reading import Reading, read_windows
from slimrank.texts.tokens import SpecialTokens

Failed = Callable[[Recipe, float, Exception], None]


def compare(
    model: str | Path | Loaded,
    runs: Sequence[tuple[Recipe, float] | tuple[Recipe, float, int | None]],
    texts: Sequence[Text],
    reading: Reading,
    *,
    max_windows: int | None = None,
    special_tokens: SpecialTokens = "text",
    device: str = "cpu",
    dtype: str = "float32",
    out: str | Path | None = None,
    resume: bool = True,
    memory: int | None = None,
    announce: Announce = silent,
    track: Track = no_track,
    failed: Failed | None = None,
) -> Iterator[Row]:
    """Yield the dense model's row, then a row for each run; the model ends as it began.

    A run is (recipe, keep), or (recipe, 1.0, size) for a checkpoint of at most `size` bytes.

    A model in memory is in the row's compressed state until the next row is requested, unless the row was loaded from
    `out`.

    model, device, dtype, memory, announce, track: as for compress. max_windows, special_tokens: of the evaluation. out:
    a folder; the model is then read from its checkpoint a block at a time, and moments, spectra and finished rows are
    kept in `out/.rows.progress` until all rows are done, so that the same call resumes after a kill, also with other
    runs. resume: False discards that progress. failed: called for a run that fails, whose row is skipped; by default
    its error ends the comparison.

    Raises:
        UsageError: for invalid options.
        SlimrankError: if the comparison fails.
    """
    asked = [fitting(Asked(*run), device) for run in runs]
    limits = Limits.of(memory, device)
    if memory is not None:
        give_memory_back()
    with ExitStack() as stack:
        pieces: MemoryPieces | DiskPieces = MemoryPieces()
        if out is not None:
            pieces = stack.enter_context(progress_of(Path(out) / "rows", True, resume))
        loaded, decoder = opened(model, device=device, dtype=dtype, limits=limits, from_disk=out is not None)
        if loaded.weights is None:
            stack.callback(fold, loaded.model)
        compressible, windows = Compressible.of(decoder), read_windows(loaded, reading)
        judging = {"max_windows": max_windows, "special_tokens": special_tokens, "window": windows.calibration.shape[1]}
        comparison = Comparison(loaded, compressible, windows, texts, judging, pieces, track, limits.weights, asked)
        if out is not None:
            identify(pieces, identity_of(compressible, windows))
            expected = comparison.expected()
            announce(expected)
            expected.check(limits, Path(out), memory is not None, size_of(progress_folder(Path(out) / "rows")))
        yield comparison.dense()
        for number, run in enumerate(asked):
            try:
                yield from comparison.row(run)
            except Exception as error:  # from optional libraries and out-of-memory devices too
                if failed is None:
                    raise
                comparison.pieces.clear(f"work/{comparison.name_of(run)}")
                failed(run.recipe, run.keep, error)
            comparison.release(run, asked[number + 1 :])


def runs_of(recipe: Recipe, keeps: Sequence[float], sizes: Sequence[int]) -> list[Asked]:
    """The runs of a recipe: one for each size if it can spend bytes, one alone if it cuts nothing, else by keeps."""
    if sizes and recipe.allocate.spends:
        return [Asked(recipe, size=size) for size in sizes]
    return [Asked(recipe, keep) for keep in keeps] if recipe.allocate.cuts else [Asked(recipe)]


def fitting(run: Asked, device: str) -> Asked:
    """The run, its recipe's refiners as its budget needs them.

    Raises:
        UsageError: for a size where the recipe can't spend bytes.
    """
    return run._replace(recipe=BudgetOptions(run.keep, run.size).fitting(run.recipe, device))
