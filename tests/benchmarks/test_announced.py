import pytest

SAID = (
    "The linears to compress hold 81% of the model's parameters. Expected: {}1.3 GiB of memory, 0.1 GiB of temporary "
    "disk space, about {}."
)


@pytest.mark.parametrize(
    ("device", "time", "memory", "seconds"),
    [("", "63 seconds", "1.3", 63), ("2.5 GiB of the device's memory and ", "12 minutes", "2.5", 720)],
)
def test_what_a_run_announces_is_read(script, device, time, memory, seconds):
    announced = script("announced")
    found = announced.SAID.search(SAID.format(device, time))
    assert (found[1] or found[2]) == memory and announced.in_seconds(found[3]) == seconds


def test_the_table_divides_what_was_taken_by_what_was_said(script):
    row = {"model": "demo", "recipe": "svd", "load": [1.0, 2.0]}
    row |= {"said": {"seconds": 40, "gib": 0.5}, "taken": {"seconds": 60.0, "gib": 0.75}}
    _, line = script("announced").table([row])
    assert line.split() == ["demo", "svd", "40", "60.0", "1.50", "0.5", "0.75", "1.50", "1.0", "to", "2.0"]
    assert script("announced").peak("whole model  1\npeak memory  1,536 MiB, mapped files included\n") == 1.5
