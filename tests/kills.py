"""Run compress in processes that are killed at chosen moments, and compare what they write."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401 (read by the server, once)

from slimrank.checkpoint.account import FILE as ACCOUNT
from slimrank.run import compress as compression
from slimrank.store import pieces

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # Python 3.11 tells its server nothing else
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["kills"])  # one server imports everything, its children begin at once
NEVER = 10**9


@dataclass(frozen=True)
class Run:
    """How a process ended. steps: None if it was killed; stage: the last one that it began; error: how it failed."""

    steps: int | None
    stage: str
    seconds: float
    error: str = ""


def run(options: dict, die_after: int = NEVER, die_at: float | None = None) -> Run:
    """compress(**options) in a process that dies at that step, or after so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = _forks.Process(target=_child, args=(options, die_after, log))
        started = time.perf_counter()
        process.start()
        while not log.exists() and process.is_alive():  # the seconds count from where the child's own work begins
            time.sleep(0.001)
            started = time.perf_counter()
        process.join(die_at)
        process.kill()
        process.join()
        seconds = time.perf_counter() - started
        said = dict(line.partition(" ")[::2] for line in log.read_text().splitlines())
    if process.exitcode == -signal.SIGKILL and "steps" not in said:
        return Run(None, said.get("stage", "start"), seconds)
    return Run(int(said["steps"]), said.get("stage", "start"), seconds, said.get("error", ""))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its relative path, less what a run says of itself.

    In the account its times, its peak of memory and whether it was resumed, in the model card the folder's own name.
    """
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    if ACCOUNT in files:
        account = {k: v for k, v in json.loads(files[ACCOUNT]).items() if k not in ("seconds", "memory", "resumed")}
        files[ACCOUNT] = json.dumps(account).encode()
    if "README.md" in files:
        card = files["README.md"].decode()
        files["README.md"] = card.replace(f"# {folder.name}\n", "").replace(f'"{folder.name}"', "").encode()
    return files


def _child(options: dict[str, Any], die_after: int, log: Path) -> None:
    torch.set_num_threads(1)
    file = log.open("w", buffering=1)
    left = die_after

    def dying(original: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return run

    # a step is a file about to be written, named or removed, or a line of a study about to be settled
    pieces.save_file = dying(pieces.save_file)
    shutil.copyfile, shutil.rmtree, os.fsync = dying(shutil.copyfile), dying(shutil.rmtree), dying(os.fsync)
    for name in ("replace", "unlink", "write_text", "mkdir"):
        setattr(Path, name, dying(getattr(Path, name)))
    with suppress(ImportError):
        from optuna.storages.journal import JournalFileBackend

        JournalFileBackend.append_logs = dying(JournalFileBackend.append_logs)
    clock = compression.Clock.__call__
    compression.Clock.__call__ = lambda self, stage: (print("stage", stage, file=file), clock(self, stage))[1]
    try:
        options = dict(options)
        if options.pop("own_methods", False):
            import own_methods

            own_methods.register()
        compression.compress(options.pop("model"), options.pop("recipe"), out=Path(options.pop("out")), **options)
    except Exception as error:
        print("error", f"{type(error).__name__}: {error}".replace("\n", " "), file=file)
    print("steps", die_after - left, file=file)
