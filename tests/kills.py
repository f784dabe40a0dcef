"""Run compress in a process that is killed at chosen moments, and compare what it writes."""

import os
import subprocess
import sys
from pathlib import Path

import slimrank

STEPS = "SLIMRANK_TEST_STEPS"
_PROGRAM = """
import os, signal, sys
import slimrank.store.pieces as pieces
from slimrank.compression import compress
from pathlib import Path

left = [int(os.environ[{steps!r}])]

def dying(original):
    def run(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return run

# a step is a piece about to be written, a written one about to be named, or one about to be dropped
pieces.save_file = dying(pieces.save_file)
pieces.Path.replace = dying(pieces.Path.replace)
pieces.DiskPieces.drop = dying(pieces.DiskPieces.drop)
options = eval(sys.argv[1])
out = Path(options.pop("out"))
compress(options.pop("model"), options.pop("recipe"), out=out, **options)
print("steps", int(os.environ[{steps!r}]) - left[0])
"""


def run(options: dict, die_after: int = 10**9) -> int | None:
    """compress(**options) in a process that dies at that step; how many steps it took, None if it died."""
    environment = {**os.environ, STEPS: str(die_after), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(slimrank.__file__).parents[1])
    command = [sys.executable, "-c", _PROGRAM.format(steps=STEPS), repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == -9:
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its relative path, but for the account, which holds the run's own times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("account.json", "README.md")
    }
