"""An Optuna study in a file: it survives a kill, goes on where it was, and several processes can share it."""

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from slimrank.errors import MissingLibrary, UsageError

if TYPE_CHECKING:
    import optuna

Sampler = Literal["gp", "tpe"]
UNIFORM = 0.625  # the middle of the box; every common value means the same shares


def require_optuna() -> Any:
    """The module optuna; a UsageError says how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingLibrary("allocate.name bayes needs Optuna: pip install slimrank[search].") from error
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its log lines and its warnings of experimental parts."""
    optuna = require_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_study(storage: str | None, identity: dict[str, Any]) -> "optuna.Study":
    """The study in the journal file `storage`, made if need be, or one in memory.

    identity: JSON of all that the objective depends on.

    Raises:
        UsageError: if the file holds a study of something else, naming the difference.
    """
    optuna = require_optuna()
    if storage is None:
        backend = optuna.storages.InMemoryStorage()
    else:
        file = optuna.storages.journal.JournalFileBackend(storage)
        backend = optuna.storages.JournalStorage(file)
    study = optuna.create_study(storage=backend, study_name="slimrank", load_if_exists=True)
    theirs = study.user_attrs.get("identity")
    if theirs is None:
        study.set_user_attr("identity", identity)
    elif theirs != identity:
        key = next(key for key in {**theirs, **identity} if theirs.get(key) != identity.get(key))
        raise UsageError(
            f"allocate.storage {storage} holds a study whose {key} is {theirs.get(key)!r}, and this run's is "
            f"{identity.get(key)!r}: give another file."
        )
    _fail_dead_trials(study)
    return study


def next_trial(study: "optuna.Study", sampler: Sampler, seed: int, names: list[str], low: float) -> Any:
    """A trial with one variable a name in (low, 1), the first one uniform.

    The sampler is made anew with a seed of the trial's own, so that what it proposes follows from the finished trials
    alone, in a run that was stopped and resumed too.
    """
    optuna = require_optuna()
    make = {"gp": optuna.samplers.GPSampler, "tpe": optuna.samplers.TPESampler}[sampler]
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    taken = sum(state.name in ("COMPLETE", "RUNNING") for state in states)
    study.sampler = make(seed=seed + taken)
    if taken == 0:
        study.enqueue_trial(dict.fromkeys(names, UNIFORM))
    space = {name: optuna.distributions.FloatDistribution(low, 1.0) for name in names}
    trial = study.ask(space)
    trial.set_user_attr("process", [socket.gethostname(), os.getpid()])
    return trial


def completed(study: "optuna.Study") -> int:
    """How many trials have a value."""
    return sum(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))


def best_value(study: "optuna.Study") -> float | None:
    """The least value so far, of all processes; None before the first."""
    return study.best_value if completed(study) else None


def _fail_dead_trials(study: "optuna.Study") -> None:
    """Give up the trials that a killed process of this machine left running or waiting."""
    optuna = require_optuna()
    for trial in study.get_trials(deepcopy=False):
        host, process = trial.user_attrs.get("process", [None, None])
        if trial.state.name == "RUNNING" and host == socket.gethostname() and not _alive(process):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
