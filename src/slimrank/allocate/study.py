"""An Optuna study in a file: it is resumed after a kill, and several processes can share it."""

import os
import socket
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slimrank.errors import MissingLibrary, UsageError

if TYPE_CHECKING:
    import optuna

Sampler = Literal["gp", "tpe"]
UNIFORM = 0.625  # the middle of the box; any value common to all blocks gives uniform shares


def require_optuna() -> Any:
    """The module optuna; raises a MissingLibrary if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise MissingLibrary("allocate.name bayes needs Optuna: pip install slimrank[search].") from error
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's log and its warnings of experimental features."""
    optuna = require_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_study(storage: str | None, identity: dict[str, Any], *, shared: bool = True) -> "optuna.Study":
    """The study in the journal file `storage`, created if it does not exist; in memory for None.

    identity: JSON of everything the objective depends on; shared: whether other processes may be working on it.

    Raises:
        UsageError: if the file holds a study of another identity, naming the first difference.
    """
    optuna = require_optuna()
    if storage is None:
        backend = optuna.storages.InMemoryStorage()
    else:
        path = Path(storage).resolve()  # the lock is a symbolic link to it
        _mend(path)
        backend = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
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
    _fail_dead_trials(study, shared)
    return study


def next_trial(study: "optuna.Study", sampler: Sampler, seed: int, names: list[str], low: float) -> Any:
    """A trial with one variable in (low, 1) for each name; the first trial is uniform.

    Each trial has a new sampler with its own seed, so that a resumed study proposes the same values.
    """
    optuna = require_optuna()
    make = {"gp": optuna.samplers.GPSampler, "tpe": optuna.samplers.TPESampler}[sampler]
    states = Counter(trial.state.name for trial in study.get_trials(deepcopy=False))
    taken = states["COMPLETE"] + states["RUNNING"]
    study.sampler = make(seed=seed + taken)
    process = {"process": [socket.gethostname(), os.getpid()]}
    if not states["WAITING"]:  # records the process before the sampler runs
        study.enqueue_trial(dict.fromkeys(names, UNIFORM) if taken == 0 else {}, user_attrs=process)
    space = {name: optuna.distributions.FloatDistribution(low, 1.0) for name in names}
    trial = study.ask(space)
    trial.set_user_attr("process", process["process"])
    return trial


def best_trial(study: "optuna.Study") -> tuple[int, Any]:
    """The best trial's number among the completed ones, and the trial."""
    done = [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return done.index(study.best_trial.number), study.best_trial


def completed(study: "optuna.Study") -> int:
    """The number of completed trials."""
    return sum(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))


def best_value(study: "optuna.Study") -> float | None:
    """The least value so far, of all processes; None before the first completed trial."""
    return study.best_value if completed(study) else None


def _mend(path: Path) -> None:
    """Truncate a last line left half written by a full disk, which would corrupt the lines after it.

    Raises:
        UsageError: if the file is not a study.
    """
    lock = require_optuna().storages.journal.JournalFileSymlinkLock(str(path))
    if path.is_file():
        lock.acquire()
        try:
            content = path.read_bytes()
            if content and b'"op_code"' not in content.split(b"\n")[0]:
                raise UsageError(f"allocate.storage {path} is a file, but no study: name another one.")
            if not content.endswith(b"\n"):
                os.truncate(path, content.rfind(b"\n") + 1)
        finally:
            lock.release()


def _fail_dead_trials(study: "optuna.Study", shared: bool) -> None:
    """Fail running trials whose process on this machine has died, or all of them if the study is not shared."""
    optuna = require_optuna()
    for trial in study.get_trials(deepcopy=False):
        host, process = trial.user_attrs.get("process", [None, None])
        dead = host == socket.gethostname() and not _alive(process)
        if trial.state.name == "RUNNING" and (dead or not shared):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
