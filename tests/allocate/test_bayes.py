import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_spectra import problem, spectra

from slimrank.allocate import bayes
from slimrank.allocate.bayes import Bayes, block_shares, scale
from slimrank.allocate.budget import fit_ranks, used
from slimrank.allocate.measure import Damage
from slimrank.errors import UsageError
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run

optuna = pytest.importorskip("optuna")
QUICK = {"windows": 2, "sampler": "tpe"}


@pytest.fixture(scope="module")
def made(tiny_llama) -> Spectra:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return spectra(tiny_llama(**sizes))


def trials(path) -> list:
    file = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.load_study(study_name="slimrank", storage=optuna.storages.JournalStorage(file)).trials


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.9, 1.0])
def test_shares_spend_the_budget_exactly_and_keep_their_proportions(keep):
    generator = torch.Generator().manual_seed(int(100 * keep))
    for _ in range(20):
        sizes = torch.randint(1, 100, (6,), generator=generator).tolist()
        values = (0.25 + 0.75 * torch.rand(6, generator=generator)).tolist()
        shares = scale(sizes, values, keep * sum(sizes))
        total = sum(size * share for size, share in zip(sizes, shares, strict=True))
        assert total == pytest.approx(keep * sum(sizes)) and all(0 < share <= 1 + 1e-12 for share in shares)
        free = [(share, value) for share, value in zip(shares, values, strict=True) if share < 1 - 1e-9]
        assert len({round(share / value, 9) for share, value in free}) <= 1


def test_every_trial_meets_the_budget_and_the_best_is_taken(made, tmp_path):
    asked = problem(made)
    allocation = Bayes(trials=8, storage=str(tmp_path / "study"), **QUICK).allocate(asked)
    damage, done = Damage(made, windows=2), trials(tmp_path / "study")
    measured = {}
    for trial in done:
        shares = block_shares(asked, [trial.params[f"block {i}"] for i in range(3)])
        ranks = fit_ranks(asked, shares)
        assert used(asked, ranks) <= asked.budget
        assert sum(shares[u] * made.weight(u).numel() for u in made.curves) == pytest.approx(0.6 * asked.dense)
        assert trial.value == pytest.approx(damage.nats(ranks), rel=1e-6)
        measured[trial.value] = ranks
    assert len(done) == 8 and allocation.ranks == measured[min(measured)]
    assert fit_ranks(asked, dict.fromkeys(made.curves, 0.6)) == measured[done[0].value]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_same_seed_gives_the_same_search_stopped_and_resumed_too(made, tmp_path, sampler, monkeypatch):
    options = {"windows": 1, "sampler": sampler, "trials": 12}
    Bayes(storage=str(tmp_path / "whole"), **options).allocate(problem(made))
    Bayes(storage=str(tmp_path / "parts"), **options | {"trials": 6}).allocate(problem(made))

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(bayes.Damage, "nats", die)
        patch.setattr("slimrank.allocate.study.os.getpid", dead_process)
        Bayes(storage=str(tmp_path / "parts"), **options).allocate(problem(made))
    assert trials(tmp_path / "parts")[-1].state.name == "RUNNING"
    resumed = Bayes(storage=str(tmp_path / "parts"), **options).allocate(problem(made))
    parts = [trial for trial in trials(tmp_path / "parts") if trial.state.name == "COMPLETE"]
    whole = trials(tmp_path / "whole")
    assert [(t.params, t.value) for t in parts] == [(t.params, t.value) for t in whole]
    assert resumed.ranks == Bayes(**options).allocate(problem(made)).ranks


def test_the_searchs_seed_is_the_calibrations_unless_one_is_given(made, tmp_path):
    for name, seed in (("own", None), ("same", 1), ("other", 2)):
        Bayes(storage=str(tmp_path / name), trials=4, seed=seed, **QUICK).allocate(problem(made))
    own, same, other = ([t.params for t in trials(tmp_path / name)] for name in ("own", "same", "other"))
    assert made.evidence.windows.record["seed"] == 1 and own == same != other


def test_a_line_that_a_full_disk_left_half_written_is_cut_off(made, tmp_path):
    storage = tmp_path / "study"
    Bayes(storage=str(storage), trials=3, **QUICK).allocate(problem(made))
    with storage.open("ab") as file:
        file.write(b'{"op_code":6,"wor')
    Bayes(storage=str(storage), trials=5, **QUICK).allocate(problem(made))
    assert [trial.state.name for trial in trials(storage)] == ["COMPLETE"] * 5


def test_a_file_that_is_no_study_is_left_alone(made, tmp_path):
    storage = tmp_path / "notes.txt"
    storage.write_text("mine\nand no line's end")
    with pytest.raises(UsageError, match="is a file, but no study"):
        Bayes(storage=str(storage), trials=1, **QUICK).allocate(problem(made))
    assert storage.read_text() == "mine\nand no line's end"


def test_a_lock_that_a_killed_process_left_on_a_study_in_a_relative_folder_is_waited_for(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optuna.storages.journal.JournalFileSymlinkLock.__init__, "__defaults__", (3,))
    Path("sub").mkdir()
    Bayes(storage="sub/study", trials=1, **QUICK).allocate(problem(made))
    Path("sub/study.lock").symlink_to(Path("sub/study").resolve())
    Bayes(storage="sub/study", trials=2, **QUICK).allocate(problem(made))


def test_the_progress_line_has_the_best_so_far(made):
    said = []

    def track(iterable, description, total):
        for item in iterable:
            said.append(description())
            yield item

    watched = replace(problem(made), run=Run(track=track))
    (note,) = Bayes(trials=5, **QUICK).allocate(watched).notes
    numbers = [float(line.rpartition(" ")[2]) for line in said[1:]]
    assert said[0] == "searching" and said[1].startswith("searching, best perplexity ")
    assert numbers == sorted(numbers, reverse=True) and len(numbers) == 4
    assert numbers[-1] >= float(re.search(r"Perplexity ([\d.]+)", note)[1]) - 0.005


PROCESS = """
import os
import sys
import time
from pathlib import Path

import torch
from tiny_spectra import problem, spectra
from transformers import LlamaForCausalLM
from slimrank.allocate.bayes import Bayes
torch.set_num_threads(1)
made = spectra(LlamaForCausalLM.from_pretrained(sys.argv[1]).eval())
here = Path(sys.argv[3])
(here / str(os.getpid())).touch()
while len(list(here.iterdir())) < 2:
    time.sleep(0.01)
Bayes(trials=40, windows=1, sampler="tpe", storage=sys.argv[2]).allocate(problem(made))
"""


def test_two_processes_share_one_study(made, tmp_path):
    made.model.decoder.model.save_pretrained(tmp_path / "model")
    (tmp_path / "ready").mkdir()
    storage, folder = str(tmp_path / "study"), str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "model"), storage, str(tmp_path / "ready")]
    running = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    done = [trial for trial in trials(storage) if trial.state.name == "COMPLETE"]
    assert len({tuple(trial.user_attrs["process"]) for trial in done}) == 2
    assert 40 <= len(done) <= 41  # both may have begun the last one
    assert sum(set(trial.params.values()) == {0.625} for trial in done) <= 2
    found = Bayes(trials=40, windows=1, sampler="tpe", storage=storage).allocate(problem(made))
    best = min(done, key=lambda trial: trial.value)
    shares = block_shares(problem(made), [best.params[f"block {i}"] for i in range(3)])
    assert found.ranks == fit_ranks(problem(made), shares) and len(trials(storage)) == len(done)


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_trial_of_a_living_process_is_left_alone(made, tmp_path):
    storage = str(tmp_path / "study")
    Bayes(trials=2, storage=storage, **QUICK).allocate(problem(made))
    file = optuna.storages.journal.JournalFileBackend(storage)
    study = optuna.load_study(study_name="slimrank", storage=optuna.storages.JournalStorage(file))
    study.ask().set_user_attr("process", [os.uname().nodename, os.getppid()])
    Bayes(trials=4, storage=storage, **QUICK).allocate(problem(made))
    assert [trial.state.name for trial in trials(storage)] == ["COMPLETE"] * 2 + ["RUNNING"] + ["COMPLETE"] * 2


@pytest.mark.parametrize(
    ("change", "named"),
    [({"keep": 0.5}, "whose keep is 0.6, and this run's is 0.5"), ({"windows": 3}, "whose allocate.windows is 2")],
)
def test_a_study_of_something_else_is_refused_with_the_difference(made, tmp_path, change, named):
    storage = str(tmp_path / "study")
    Bayes(trials=2, storage=storage, **QUICK).allocate(problem(made))
    other = Bayes(trials=2, storage=storage, **QUICK | {k: v for k, v in change.items() if k != "keep"})
    with pytest.raises(UsageError, match=named):
        other.allocate(problem(made, change.get("keep", 0.6)))


def test_a_study_of_another_model_or_text_is_refused(made, tmp_path, tiny_llama, monkeypatch):
    storage = str(tmp_path / "study")
    chosen = Bayes(trials=1, storage=storage, **QUICK)
    chosen.allocate(problem(made))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    with pytest.raises(UsageError, match="whose model is"):
        chosen.allocate(problem(spectra(tiny_llama(seed=1, **sizes))))
    monkeypatch.setitem(made.evidence.windows.record, "seed", 7)
    with pytest.raises(UsageError, match=r"whose calibration.seed is 1, and this run's is 7"):
        chosen.allocate(problem(made))


def test_without_optuna_one_sentence_says_what_to_install(made, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install slimrank\[search\]"):
        Bayes(trials=1, **QUICK).allocate(problem(made))
