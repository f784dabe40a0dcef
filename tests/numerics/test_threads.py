import threading
import time

import pytest
import torch

from slimrank.numerics.threads import in_threads, is_small, one_thread


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_inside_for_small_matrices_and_as_before_afterwards(two_threads):
    with one_thread(torch.zeros(8, 3000)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with one_thread(torch.zeros(1, 1).expand(2000, 2000)):
        assert torch.get_num_threads() == 2


def test_results_come_in_order_and_small_jobs_run_side_by_side(two_threads):
    both, names = threading.Barrier(2, timeout=60), []

    def job(number):
        if number < 2:
            both.wait()  # only if both are at work at once
        names.append(threading.current_thread().name)
        return number

    jobs = ((number != 2, lambda number=number: job(number)) for number in range(5))
    assert list(in_threads(jobs)) == [0, 1, 2, 3, 4]
    assert names[2] == "MainThread" and torch.get_num_threads() == 2


def test_no_more_jobs_are_asked_for_than_can_run(two_threads):
    asked, done = [], []

    def jobs():
        for number in range(6):
            asked.append(number)
            yield True, lambda number=number: time.sleep(0.01) or number

    for number in in_threads(jobs()):
        done.append(number)
        assert len(asked) - len(done) <= 2


def test_an_error_in_a_job_is_raised(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(in_threads((True, lambda: 1 // 0) for _ in range(3)))
    assert torch.get_num_threads() == 2


def test_what_is_small():
    cpu = torch.device("cpu")
    assert is_small((1024, 4096), cpu) and not is_small((1025, 1025), cpu) and not is_small((64, 5000), cpu)
    assert not is_small((64, 64), torch.device("meta"))
