"""Times on a GPU by CUDA events over CUDA graphs, and on a CPU, where the script is tried out, by the clock."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Call = Callable[[], object]


def captured(calls: Sequence[Call], device: torch.device) -> Call:
    """All calls, one after the other, as a CUDA graph; on a CPU as they are."""
    if device.type != "cuda":
        return lambda: [call() for call in calls]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    return lambda: (graph.replay(), kept)


def seconds(call: Call, device: torch.device) -> float:
    """Of one call."""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def medians(
    calls: Mapping[str, Call], counts: Mapping[str, int], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median microseconds of each, in turns, divided by what it does at once; the first two rounds are a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            times[name].append(seconds(call, device) / counts[name])
    return {name: round(1e6 * statistics.median(own[2:]), 3) for name, own in times.items()}


def require_close(what: str, found: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    """Stop where the root mean square error, over that of `exact`, is above the tolerance."""
    error = ((found.float() - exact).norm() / exact.norm()).item()
    if not error <= tolerance:
        raise ArithmeticError(f"{what} is {error:.2g} from float32, more than {tolerance:g}: nothing was timed.")
