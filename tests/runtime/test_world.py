import json

import kills
import processes
import pytest
import torch
from typer.testing import CliRunner

from slimrank import load
from slimrank.cli.main import app
from slimrank.errors import UsageError
from slimrank.forms import Form
from slimrank.runtime.world import ALONE, World

FAST = {"svd-llm": ["--recipe", "svd-llm"], "slimrank": ["--recipe", "slimrank"]}
SLOW = {
    "dipsvd": ["--recipe", "dipsvd", "--set", "metric.gain=auto"],
    "duo-svd": ["--recipe", "duo-svd", "--set", "allocate.windows=4"],
    "dipsvd-bo": ["--recipe", "dipsvd-bo", "--set", "allocate.windows=8", "--set", "allocate.trials=6"],
    "asvd": ["--recipe", "asvd", "--set", "allocate.windows=4"],
    "update": ["--recipe", "svd-llm-update"],
    "lora": ["--recipe", "svd-llm-lora", "--set", "refine=[{name: lora, steps: 2, batch: 4}]"],
    "sampled": ["--recipe", "slimrank", "--set", "metric.labels=sampled", "--set", "refine=[]"],
    "joined": ["--set", "allocate.gain=0", "--keep", "0.3"],
    "mix": ["--set", "refine=[{name: anchored, mix: 1.0, shrink: 0}]"],
    "anchored twice": ["--set", "refine=[{name: anchored}, {name: anchored, windows: 64}]"],
    "trained": ["--recipe", "svd-llm", "--set", "refine=[{name: update}, {name: distill, tokens: 512, batch: 128}]"],
    "distilled": ["--set", "refine=[anchored, {name: distill, tokens: 512, batch: 512, checks: 2}]"],
}
TRAINED = {"lora", "trained", "distilled"}


@pytest.fixture
def command(tiny_llama, tiny_tokenizer, make_text, tmp_path):
    """The command line, but for the recipe and --out, of a small run whose shares are whole batches."""
    tiny_llama(num_hidden_layers=3).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(make_text(20000))
    read = ["--calibration", str(tmp_path / "text.txt"), "--samples", "128", "--window", "128", "--keep", "0.6"]
    return ["compress", str(tmp_path / "dense"), *read]


def difference(one, other):
    """The largest relative difference of the two checkpoints' compressed weights, their forms and ranks being equal."""
    plans = [json.loads((folder / "slimrank" / "plan.json").read_text())["linears"] for folder in (one, other)]
    chosen = [{name: (linear["form"], linear["rank"]) for name, linear in plan.items()} for plan in plans]
    assert chosen[0] == chosen[1]
    ours, theirs = (dict(load(str(folder)).model.named_modules()) for folder in (one, other))
    pairs = [(m.dense_weight(), theirs[name].dense_weight()) for name, m in ours.items() if isinstance(m, Form)]
    assert pairs
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def check(command, recipe, tmp_path, tolerance=1e-6):
    """Two processes give what one gives; by default up to the order of float64 sums."""
    alone = CliRunner().invoke(app, [*command, *recipe, "--out", str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output
    several = processes.torchrun(tmp_path, *command, *recipe, "--out", str(tmp_path / "two"))
    assert several.returncode == 0, several.stderr[-3000:]
    assert several.stdout.count("Written to") == 1
    assert not (tmp_path / ".two.progress").exists()
    assert difference(tmp_path / "one", tmp_path / "two") < tolerance


@pytest.mark.parametrize("recipe", FAST)
def test_two_processes_give_what_one_gives(command, recipe, tmp_path):
    check(command, FAST[recipe], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SLOW)
def test_every_step_is_shared_out(command, recipe, tmp_path):
    check(command, SLOW[recipe], tmp_path, tolerance=1e-2 if recipe in TRAINED else 1e-4)


@pytest.mark.slow
def test_shares_that_cut_a_batch_add_the_rounding_of_float32(command, tmp_path):
    check([*command, "--samples", "25"], FAST["svd-llm"], tmp_path, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dies", [(1, 70), (0, 90), (1, 130)])
def test_a_killed_process_ends_the_run_which_then_goes_on(command, dies, tmp_path):
    arguments = [*command, *FAST["slimrank"]]
    whole = processes.torchrun(tmp_path, *arguments, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-3000:]
    arguments += ["--out", str(tmp_path / "out")]
    killed = processes.torchrun(tmp_path, *arguments, dies=dies)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    assert killed.stderr.count("error: Another process of this run has ended") <= 1
    assert (tmp_path / ".out.progress").is_dir() and not (tmp_path / "out").exists()
    refused = CliRunner().invoke(app, arguments)
    assert "number of processes is 2, and this one's is 1" in str(refused.exception)
    resumed = processes.torchrun(tmp_path, *arguments)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    one, other = (kills.contents(tmp_path / name) for name in ("out", "whole"))
    del one["slimrank/report.html"], other["slimrank/report.html"]  # they hold the runs' times
    assert one == other
    assert not (tmp_path / ".out.progress").exists()


@pytest.mark.slow
def test_a_mistake_is_told_once_and_other_commands_are_refused(command, tmp_path):
    wrong = processes.torchrun(tmp_path, *command, "--keep", "2", "--out", str(tmp_path / "out"))
    assert wrong.returncode != 0 and wrong.stderr.count("error: --keep 2.0 must be above 0") == 1
    few = processes.torchrun(tmp_path, *command, "--samples", "1", "--out", str(tmp_path / "out"))
    assert few.returncode != 0 and few.stderr.count("error: 2 processes cannot share 1 windows") == 1
    other = processes.torchrun(tmp_path, "plan", *command[1:], "--out", str(tmp_path / "plan.json"))
    assert "error: slimrank plan runs in one process: start it without torchrun." in other.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(("count", "size"), [(10, 1), (10, 3), (7, 7), (256, 8)])
def test_the_shares_are_all_windows_in_order_and_about_equal(count, size):
    windows = torch.arange(count)[:, None]
    shares = [World(rank, size).share(windows) for rank in range(size)]
    assert torch.equal(torch.cat(shares), windows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_fewer_windows_than_processes_is_refused():
    with pytest.raises(UsageError, match="4 processes cannot share 3 windows"):
        World(0, 4).share(torch.zeros(3, 5))


def test_work_is_dealt_by_cost_and_neighbours_stay_together():
    costs = [1, 1, 1, 1, 4, 4, 1, 1, 1, 1]
    hands = [World(rank, 2).dealt(range(10), costs) for rank in range(2)]
    assert hands == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    hands = [World(rank, 4).dealt("abcdefghij", costs) for rank in range(4)]
    assert hands == [["a", "b", "c", "d"], ["e"], ["f"], ["g", "h", "i", "j"]]
    assert [World(rank, 3).dealt([], []) for rank in range(3)] == [[], [], []]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("costs", [[0, 0, 0], [0, 5, 0], [5, 0, 0], [0, 0, 5], [1, 2, 0]])
def test_what_costs_nothing_is_dealt_too(size, costs):
    assert [item for rank in range(size) for item in World(rank, size).dealt("abc", costs)] == ["a", "b", "c"]


def test_one_process_alone_keeps_its_sums_and_its_device():
    sums = torch.ones(3)
    ALONE.add_up(sums)
    assert sums.tolist() == [1, 1, 1] and ALONE.total(2.5) == 2.5 and ALONE.gathered({"a": 1}) == {"a": 1}
    assert ALONE.from_main(lambda: 7) == 7 and ALONE.place("cuda:1") == "cuda:1"
    with ALONE.turn() as mine:
        assert mine
    with pytest.raises(UsageError, match="--device cuda:1 names one device for 2 processes"):
        World(0, 2).place("cuda:1")


def test_nothing_is_summed_while_the_processes_work_apart():
    with pytest.raises(RuntimeError, match="work apart"):
        World(0, 2, together=False).total(1)
