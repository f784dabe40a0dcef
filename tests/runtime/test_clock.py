from itertools import count

from slimrank.runtime import clock as module
from slimrank.runtime.clock import Clock


def test_a_stage_inside_another_counts_apart(monkeypatch):
    times = count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))  # a second between any two looks
    clock = Clock()
    with clock("outer"):
        for _ in range(2):
            with clock("inner"):
                pass
    assert clock.seconds == {"inner": 2, "outer": 3}
