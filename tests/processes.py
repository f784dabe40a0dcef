"""Run the command line in several processes, one of which may be killed at a chosen moment."""

import os
import subprocess
import sys
from pathlib import Path

import slimrank

DIES = "SLIMRANK_TEST_DIES"
_PROGRAM = """
import os, signal
from slimrank.runtime.world import World
from slimrank.cli.main import main

rank, left = map(int, os.environ[{dies!r}].split(":"))
whole = World._reduce

def dying(self, tensor):
    global left
    if self.rank == rank:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    whole(self, tensor)

World._reduce = dying
main()
"""


def torchrun(folder: Path, *arguments: str, dies: tuple[int, int] = (0, 0)) -> subprocess.CompletedProcess[str]:
    """`slimrank ARGUMENTS` in two processes; dies: the one that is killed, and at which of its sums (0 for none)."""
    program = folder / "program.py"
    program.write_text(_PROGRAM.format(dies=DIES))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", DIES: f"{dies[0]}:{dies[1]}"}
    environment["PYTHONPATH"] = str(Path(slimrank.__file__).parents[1])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    return subprocess.run(
        [sys.executable, *launch, *arguments], capture_output=True, text=True, env=environment, timeout=280
    )
