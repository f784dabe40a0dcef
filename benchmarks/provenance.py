"""Where a row was measured and by what."""

import argparse
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

import slimrank
from slimrank.errors import UsageError
from slimrank.runtime.machine import processor

PACKAGE = Path(slimrank.__file__).parent


def here(options: argparse.Namespace) -> dict[str, Any]:
    """Commit, machine and versions, for every row measured with these options: device, threads, jobs, commit.

    Raises:
        UsageError: for an `options.commit` where the checkout says itself which it is.
    """
    found = commit()
    if options.commit and found:
        raise UsageError(f"--commit {options.commit}: the checkout says that it is {found}, so leave the option out.")
    device = torch.device(getattr(options, "device", None) or "cpu")
    return {
        "commit": found or options.commit,
        "machine": processor(device),
        "device": device.type,
        "threads": options.threads,
        "jobs": options.jobs,
        "slimrank": slimrank.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@cache
def commit() -> str | None:
    """The commit of the checkout that slimrank runs from, a + behind it where its files are changed; None without."""
    if git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed, maybe inside of another checkout
        return None
    found = git("rev-parse", "HEAD")
    return found and found + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", "..") else "")


def git(*arguments: str) -> str | None:
    """What git says in the package's folder; None where it refuses or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
