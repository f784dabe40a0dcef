"""EleutherAI's lm-evaluation-harness, run on models that slimrank has loaded."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from slimrank.errors import MissingLibrary, SlimrankError, UsageError
from slimrank.model.load import Loaded

BATCH = 8


@dataclass(frozen=True)
class Score:
    """A metric's value, and its standard error where the harness knows it."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """One task's outcome: how many items, with how many examples in front of each, and the metrics by name."""

    items: int
    shots: int
    version: str
    metrics: dict[str, Score]


class Tasks:
    """Tasks of the harness by name, ready to be measured on one model after the other."""

    def __init__(self, names: Sequence[str], folder: Path | None = None, limit: int | None = None) -> None:
        """`folder` holds task files (YAML) of the user's own, `limit` is the number of items of each task.

        Raises:
            MissingLibrary: if lm-eval is not installed.
            UsageError: if a name is no task, or the folder is none.
        """
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--tasks-path {folder} is no folder: give one with task files (.yaml).")
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise MissingLibrary("--tasks needs lm-eval: pip install 'slimrank[tasks]'.") from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.names, self.limit = list(names), limit
        self.manager = TaskManager(include_path=folder)
        for name in self.names:
            if name not in self.manager.all_tasks:
                raise UsageError(
                    f"--tasks: the harness has no task {name!r}, and --tasks-path brings none of that name."
                )

    def measure(self, loaded: Loaded, names: Sequence[str] | None = None) -> dict[str, TaskResult]:
        """Every task's result on the model, by name, or that of those `names`; a group brings its members.

        Raises:
            SlimrankError: if a task's data can't be read.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        chosen = self.names if names is None else list(names)
        wrapped = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=BATCH)
        try:
            with _quiet():
                found = simple_evaluate(
                    wrapped,
                    tasks=chosen,
                    limit=self.limit,
                    task_manager=self.manager,
                    bootstrap_iters=100,
                    log_samples=False,
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise SlimrankError(f"--tasks {','.join(chosen)} cannot be run on {loaded.name}: {reason}.") from error
        return {name: _result(name, found) for name in found["n-samples"]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing of the harness's own prints and bars into a table that is piped or saved."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()), redirect_stdout(sys.stderr):
        yield


def _result(name: str, found: dict[str, Any]) -> TaskResult:
    measured = {key: value for key, value in found["results"][name].items() if isinstance(value, int | float)}
    metrics = {}
    for key, value in measured.items():
        metric, _, kind = key.partition(",")
        if metric.endswith("_stderr") or not kind:
            continue
        stderr = measured.get(f"{metric}_stderr,{kind}")
        metrics[metric if kind == "none" else f"{metric} ({kind})"] = Score(float(value), stderr)
    items, shots = found["n-samples"][name]["effective"], found["n-shot"].get(name, 0)
    return TaskResult(items, shots, str(found["versions"].get(name)), metrics)
