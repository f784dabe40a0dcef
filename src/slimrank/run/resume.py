"""The progress folder of a run, and the check that it belongs to the same run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from slimrank.budget.asked import RunBudget
from slimrank.calibrate import Windows
from slimrank.checkpoint import check_free, discard, locked, place_of, recover
from slimrank.errors import UsageError
from slimrank.model.compressible import Compressible
from slimrank.model.fingerprint import fingerprint
from slimrank.plan import Plan
from slimrank.recipe import Recipe
from slimrank.runtime.digests import sha256_of_json
from slimrank.runtime.versions import needed_versions
from slimrank.runtime.world import World
from slimrank.store.disk import disk_errors
from slimrank.store.pieces import DiskPieces, Pieces
from slimrank.store.shared import SharedPieces

IDENTITY = "identity"
WRITTEN = "written"


def progress_folder(out: Path) -> Path:
    """The folder beside `out` for finished work: `.NAME.progress`."""
    place = place_of(out)
    return place.with_name(f".{place.name}.progress")


@contextmanager
def progress_of(out: Path, overwrite: bool, resume: bool) -> Iterator[DiskPieces]:
    """The pieces of the run that writes `out`, removed on success; progress without an identity is discarded.

    Raises:
        UsageError: if `out` exists and may not be this run's own result, or another process is writing it.
    """
    folder = progress_folder(out)
    pieces = DiskPieces(folder)
    with disk_errors(folder):
        recover(out)
        if not (resume and IDENTITY in pieces and WRITTEN in pieces):
            check_free(out, overwrite)
    with locked(folder / "lock", out):
        for stale in folder.glob("*.lock"):  # left by a killed Optuna study
            stale.unlink()
        if not resume:
            pieces.drop(IDENTITY)
        if IDENTITY not in pieces:
            pieces.clear()
        try:
            yield pieces
        except BaseException:
            pieces.drop_empty(but=IDENTITY)
            raise
        discard(folder, out)


@contextmanager
def shared_progress_of(out: Path, overwrite: bool, resume: bool, world: World) -> Iterator[Pieces]:
    """As progress_of for several processes, the first of which owns the folder.

    Raises:
        UsageError: if another process does not see the folder.
    """
    if world.size == 1:
        with progress_of(out, overwrite, resume) as pieces:
            yield pieces
        return
    with progress_of(out, overwrite, resume) if world.main else nullcontext(DiskPieces(progress_folder(out))) as pieces:
        world.barrier()
        if not (pieces.folder / "lock").exists():
            raise UsageError(
                f"Process {world.rank} does not see {pieces.folder}: name an --out that all machines share."
            )
        yield SharedPieces(pieces, world)
        world.barrier()


def identity_of(model: Compressible, windows: Windows) -> dict[str, Any]:
    """The model, calibration and versions that a run's results depend on, by name."""
    decoder = model.decoder
    return {
        "dtype": str(next(decoder.model.parameters()).dtype),  # before the model, whose fingerprint depends on it
        "model": fingerprint(decoder)["sha256"],
        "device": decoder.device.type,
        "number of processes": decoder.world.size,
        "linears": sha256_of_json(list(model.linears)),
        **{f"calibration.{key}": value for key, value in windows.record.items()},
        **{f"version of {name}": version for name, version in needed_versions().items()},
    }


def choices(recipe: Recipe, plan: Plan | None, keep: float, budget: RunBudget | None = None) -> dict[str, Any]:
    """The keep or other budget, recipe and plan that a compression also depends on, by name."""
    return {
        "keep": keep,
        **({} if budget is None else budget.identity),
        **{f"recipe.{key}": value for key, value in recipe.model_dump(mode="json").items()},
        "plan": plan and sha256_of_json(plan.model_dump(mode="json")),
    }


def identify(pieces: Pieces, identity: dict[str, Any]) -> bool:
    """Record the run's identity, or compare it with the recorded one; returns whether there was one.

    Raises:
        UsageError: naming the first difference.
    """
    identity = json.loads(json.dumps(identity))
    resumed = IDENTITY in pieces
    if not resumed:
        pieces.save(IDENTITY, {}, identity)
    theirs = pieces.load(IDENTITY)[1]
    for key in {**identity, **theirs}:
        if theirs.get(key) != identity.get(key):
            raise UsageError(
                f"The progress beside --out is of a run whose {key} is {_short(theirs.get(key))}, and this one's is "
                f"{_short(identity.get(key))}: give the same options, or --fresh to begin anew."
            )
    return resumed


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
