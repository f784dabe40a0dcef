import json
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from slimrank.errors import MissingLibrary
from slimrank.store import pieces

ASKED = ["dense", "--calibration", "text.txt", "--text", "a/test.txt", "--text", "b/other.txt", "--samples", "8"]
ASKED += ["--window", "32", "--max-windows", "4", "--out", "real.json"]
TWO = [*ASKED, "--recipes", "svd,svd-llm"]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: items.json}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""
ITEMS = [{"question": f"{word} is", "choices": [" a", " b"], "gold": n % 2} for n, word in enumerate("vwxyz")]
PROVENANCE = {"commit", "machine", "device", "threads", "slimrank", "torch", "transformers"}


@pytest.fixture(autouse=True)
def texts(place, monkeypatch):
    (place / "b" / "test.txt").rename(place / "b" / "other.txt")
    monkeypatch.setenv("HF_HOME", str(place / "cache"))


@pytest.fixture
def measured(script, monkeypatch):
    """The runs that were compressed, in their order."""
    rows, seen = script("real_rows"), []

    def compare(loaded, runs, *arguments, **options):
        seen.extend((recipe.name, keep) for recipe, keep in runs)
        return original(loaded, runs, *arguments, **options)

    original = rows.compare
    monkeypatch.setattr(rows, "compare", compare)
    return seen


def of(place, name="real.json"):
    """The file's rows by recipe, keep and part."""
    rows = json.loads((place / name).read_text())["rows"]
    found = {(row["recipe"], row["keep"], row["part"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def refused(run, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run("real", *arguments)
    return stopped.value.code


def test_rows_are_measured_once_and_hold_what_was_measured_where(place, run, measured, capsys):
    run("real", *TWO, "--tasks", "none", "--keeps", "0.8")
    first = of(place)
    run("real", *TWO, "--tasks", "none", "--keeps", "0.9,0.6,0.8", "--max-windows", "3")
    assert measured == [(name, keep) for keep in (0.8, 0.9, 0.6) for name in ("svd", "svd-llm")]
    rows = of(place)
    assert [*rows][:3] == [("dense", 1.0, "texts"), ("svd", 0.8, "texts"), ("svd-llm", 0.8, "texts")]
    assert first == {key: rows[key] for key in first} and len(first) == 3 and len(rows) == 7
    dense, own = rows["dense", 1.0, "texts"], rows["svd-llm", 0.8, "texts"]
    assert own.keys() == dense.keys() >= PROVENANCE and own["seed"] == 3 and dense["seed"] is None
    for text in ("test.txt", "other.txt"):
        read = own["texts"][text]
        assert read["nats_lost"] == pytest.approx(read["nats"] - dense["texts"][text]["nats"], abs=1e-6)
        assert read["kl"] > 0 < read["kl_stderr"] and read["nats_lost_stderr"] > 0 < read["perplexity_stderr"]
        assert (read["windows"], read["tokens"]) == (4, 124)
    assert own["kept"] == pytest.approx(0.76875) and len(own["blocks"]) == 2
    assert own["bytes"] == 4 * own["parameters"] < dense["bytes"] and own["seconds"] >= 0 and own["peak_bytes"] > 2**20
    capsys.readouterr()
    run("real", "--table", "--out", "real.json")
    said = capsys.readouterr().out
    lost = [
        f"{rows['svd', keep, 'texts']['texts'][text]['nats_lost']:.3f}"
        for keep in (0.9, 0.8, 0.6)
        for text in ("test.txt", "other.txt")
    ]
    assert f"| svd | {lost[0]} / {lost[1]}* | {lost[2]} / {lost[3]} | {lost[4]} / {lost[5]}* | " in said
    assert "| recipe | nats 0.9 | nats 0.8 | nats 0.6 | KL 0.9 | KL 0.8 | KL 0.6 | seconds |" in said


def test_with_progress_rows_are_the_same_and_one_that_was_stopped_goes_on(place, run, script, monkeypatch):
    run("real", *TWO, "--tasks", "none", "--keeps", "0.6")
    whole, asked = of(place), [*TWO, "--tasks", "none", "--keeps", "0.6", "--progress", "work", "--out", "parts.json"]
    saved = pieces.save_file
    left = 12

    def dying(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return saved(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pieces, "save_file", dying)
        run("real", *asked)
    assert list((place / "work" / "seed-3" / ".rows.progress").iterdir())
    run("real", *asked)
    parts = of(place, "parts.json")
    assert parts.keys() == whole.keys() and None in {row["seconds"] for row in parts.values()}
    for key, row in whole.items():
        assert {k: row[k] for k in ("texts", "bytes", "kept")} == {k: parts[key][k] for k in ("texts", "bytes", "kept")}
    assert refused(run, *asked, "--tasks", "letters") == 2


def test_a_run_with_tasks_completes_rows_that_have_none(place, run, measured, script, monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    (place / "items.json").write_text(json.dumps(ITEMS))
    (place / "tasks").mkdir()
    for name in ("letters", "others", "broken"):
        (place / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name))
    (place / "tasks" / "broken.yaml").write_text(TASK.format(name="broken").replace("items", "nothing"))
    tasks = ["--keeps", "0.6", "--tasks-path", "tasks", "--limit", "4"]

    def absent(*_):
        raise MissingLibrary("--tasks needs lm-eval: pip install 'slimrank[tasks]'.")

    with monkeypatch.context() as patch:
        patch.setattr(script("real"), "Tasks", absent)
        run("real", *TWO, "--keeps", "0.6")
        assert "The tasks are left out, for another run to add: --tasks needs lm-eval" in capsys.readouterr().err
        assert refused(run, *TWO, *tasks, "--tasks", "letters") == 2
    texts = of(place)
    run("real", *TWO, *tasks, "--tasks", "letters")
    rows = of(place)
    assert {key: rows[key] for key in texts} == texts and len(rows) == 6
    own = rows["svd", 0.6, "letters"]
    assert (own["items"], own["shots"], own["version"], own["limit"]) == (4, 0, "2.0", 4) and own.keys() >= PROVENANCE
    assert own["metrics"]["acc"]["value"] in (0, 0.25, 0.5, 0.75, 1) and own["metrics"]["acc"]["stderr"] is not None
    capsys.readouterr()
    assert refused(run, *TWO, *tasks, "--tasks", "broken,letters,others") == (
        "1 of 6 rows failed: the others are in real.json."
    )
    said = capsys.readouterr().err
    assert said.startswith("dense at keep 1: --tasks broken cannot be run on dense: ") and said.count("broken") == 1
    assert "; it is not tried on other models.\n" in said
    rows = of(place)
    assert len(rows) == 9 and rows["svd", 0.6, "others"]["metrics"] == rows["svd", 0.6, "letters"]["metrics"]
    run("real", "--table", "--out", "real.json")
    mean = own["metrics"]["acc"]["value"]
    assert f" | {mean:.3f} | " in capsys.readouterr().out.partition("| svd |")[2].splitlines()[0]


def test_another_commit_is_refused_unless_mixed(place, run, script, monkeypatch, capsys):
    commits = script("provenance")
    monkeypatch.setattr(commits, "commit", lambda: "a" * 40)
    run("real", *ASKED, "--tasks", "none", "--keeps", "0.8", "--recipes", "svd")
    monkeypatch.setattr(commits, "commit", lambda: "b" * 40 + "+")
    run("real", *ASKED, "--tasks", "none", "--keeps", "0.8", "--recipes", "svd")  # nothing is missing
    more = [*TWO, "--tasks", "none", "--keeps", "0.8"]
    assert refused(run, *more) == 2
    assert f"real.json holds rows of commit {'a' * 40}, and this is commit {'b' * 40}+: " in capsys.readouterr().err
    run("real", *more, "--mixed")
    assert {key[0]: row["commit"][0] for key, row in of(place).items()} == {"dense": "a", "svd": "a", "svd-llm": "b"}
    assert refused(run, *more, "--keeps", "0.6", "--commit", "c") == 2
    assert "the checkout says that it is bbbb" in capsys.readouterr().err


def test_rows_that_say_nothing_of_their_commit_are_another_ones(place, run, script, monkeypatch, capsys):
    monkeypatch.setattr(script("provenance"), "commit", lambda: None)
    run("real", *ASKED, "--tasks", "none", "--keeps", "0.8", "--recipes", "svd")
    run("real", *ASKED, "--tasks", "none", "--keeps", "0.6", "--recipes", "svd")
    assert {row["commit"] for row in of(place).values()} == {None}
    assert refused(run, *TWO, "--tasks", "none", "--keeps", "0.6", "--commit", "cafe") == 2
    assert "holds rows of commit unknown, and this is commit cafe" in capsys.readouterr().err
    content = json.loads((place / "real.json").read_text())
    for row in content["rows"]:
        del row["commit"]
    (place / "real.json").write_text(json.dumps(content))
    assert refused(run, *TWO, "--tasks", "none", "--keeps", "0.6") == 2
    assert "holds rows of commit unknown, and this is commit unknown" in capsys.readouterr().err


def test_a_row_that_fails_leaves_the_others(place, run, capsys):
    wrong = ["--set", "asvd:allocate.windows=99", "--tasks", "none", "--keeps", "0.8"]
    asked = [*ASKED, "--recipes", "svd,asvd,duo-svd", *wrong]
    assert refused(run, *asked) == "1 of 4 rows failed: the others are in real.json."
    assert (
        "asvd at keep 0.8, seed 3: allocate.windows 99 is more than the 8 calibration windows"
        in capsys.readouterr().err
    )
    rows = of(place)
    assert [key[0] for key in rows] == ["dense", "svd", "duo-svd"]
    assert rows["duo-svd", 0.8, "texts"]["settings"] == ["allocate.windows=4"]


def test_no_row_is_begun_after_the_time_is_up_and_files_are_merged(place, run, script, monkeypatch, capsys):
    asked = [*ASKED, "--tasks", "none", "--keeps", "0.8"]
    ticks = iter(range(0, 999, 30))  # asked at the beginning, before each seed and after each row
    with monkeypatch.context() as patch:
        patch.setattr(script("real_rows"), "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        run("real", *asked, "--recipes", "svd,svd-llm,fwsvd", "--minutes", "1")
    assert [key[0] for key in of(place)] == ["dense", "svd"]
    assert "2 rows are left: the same command goes on with them." in capsys.readouterr().err
    run("real", *asked, "--recipes", "svd-llm", "--out", "other.json")
    run("real", "--merge", "real.json", "other.json", "--out", "all.json")
    rows = of(place, "all.json")
    assert [*rows] == [*of(place), ("svd-llm", 0.8, "texts")]
    assert rows["dense", 1.0, "texts"] == of(place)["dense", 1.0, "texts"]
    run("real", *asked, "--recipes", "fwsvd", "--samples", "9", "--out", "third.json")
    assert refused(run, "--merge", "third.json", "--out", "all.json") == 2
    assert "third.json was made with another samples than all.json" in capsys.readouterr().err
    assert of(place, "all.json") == rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes", "svdllm"], "There is no recipe 'svdllm'"),
        (["--tasks", "none", "--text", "none.txt"], "none.txt does not exist: give the path of a text that does"),
        (["--table", "--out", "none.json"], "--out none.json does not exist: measure something first"),
        (["--merge", "text.txt"], "text.txt is there and holds no rows of a benchmark"),
        (["--limit", "0"], "argument --limit: '0' must be a whole number of at least 1"),
    ],
)
def test_bad_input_is_one_sentence(place, run, capsys, arguments, message):
    assert refused(run, *ASKED, *arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1] and not (place / "real.json").exists()


def test_without_the_hub_it_says_what_to_give(run, script, monkeypatch, capsys):
    def nothing(*_, **__):
        raise ConnectionError("no network\nhere.")

    monkeypatch.setattr(script("papers"), "hf_hub_download", nothing)
    assert refused(run, "dense", "--tasks", "none") == 1
    assert capsys.readouterr().err == (
        "The texts cannot be fetched (no network here): give files by --calibration and --text, or to make real by "
        "CALIBRATION=FILE TEXTS='FILE FILE'.\n"
    )


def test_the_searches_come_last_and_the_share_of_a_cpu_is_less(script, monkeypatch):
    real, asked = script("real"), []
    monkeypatch.setattr(real.rows_of, "run", lambda options, tasks, *_: asked.append((options, tasks)))
    monkeypatch.setattr(real, "show", lambda out: None)
    real.main([*ASKED[:7], "--tasks", "none", "--set", "dipsvd-bo:allocate.trials=50"])
    options, tasks = asked[0]
    runs = [(task["recipe"], task["keep"]) for task in tasks]
    assert len(runs) == 1 + 3 * len(real.shipped_recipes()) and options.max_windows == 64
    assert runs[:3] == [("dense", 1.0), ("svd", 0.8), ("svd-llm", 0.8)]
    searches = ["asvd", "duo-svd", "dipsvd-bo"]
    assert runs[-9:] == [(name, keep) for keep in (0.8, 0.9, 0.6) for name in searches]
    assert tasks[-1]["settings"] == ["allocate.windows=8", "allocate.trials=50"]
    real.main([*ASKED[:7], "--tasks", "none", "--cpu-share"])
    options, tasks = asked[1]
    assert {task["keep"] for task in tasks} == {1.0, 0.8} and (options.max_windows, options.limit) == (32, 100)


def test_make_real_hands_its_variables_to_the_script(script):
    root = Path(script("real").__file__).parents[1]
    given = ["CALIBRATION=train.tokens", "TEXTS=a.tokens c4.jsonl", "DEVICE=cuda", "TASKS=own", "REAL=--minutes 9"]

    def command(*variables):
        said = subprocess.run(
            ["make", "--no-print-directory", "-n", "real", *variables],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        )
        return shlex.split(said.stdout.replace("\\\n", " ").splitlines()[-1])[1:]

    texts = ["--calibration", "train.tokens", "--text", "a.tokens", "--text", "c4.jsonl"]
    others = ["--tasks-path", "own", "--minutes", "9"]
    assert command(*given) == ["benchmarks/real.py", "--device", "cuda", *texts, *others]
    assert command() == ["benchmarks/real.py", "--device", "cpu", "--cpu-share"]
