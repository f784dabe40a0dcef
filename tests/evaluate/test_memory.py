from pathlib import Path

import pytest
import torch

from slimrank.evaluate.memory import begin_peak, peak, peak_of

CPU, MEGA = torch.device("cpu"), 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_peak_is_seen_after_it_is_over_and_only_since_its_beginning():
    def take(megabytes):
        torch.ones(megabytes * MEGA // 4)  # touched and freed

    assert peak_of(lambda: take(256), CPU) == pytest.approx(256 * MEGA, rel=0.1)
    before = begin_peak(CPU)
    take(64)
    assert peak(CPU) - before == pytest.approx(64 * MEGA, rel=0.25)
