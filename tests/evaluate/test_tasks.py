import json

import pytest
import torch
from typer.testing import CliRunner

from slimrank import load
from slimrank.cli.main import app
from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate.tasks import Tasks

pytest.importorskip("lm_eval")

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""
ITEMS = [
    {"question": "def f(x):\n    return", "choices": [" x", " qqqq"], "gold": 0},
    {"question": "import", "choices": [" zzzz", " os"], "gold": 1},
    {"question": "for i in", "choices": [" range", " )))"], "gold": 1},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "items.json").write_text(json.dumps(ITEMS))
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(data=tmp_path / "items.json"))
    return tmp_path / "tasks"


def likelihood(loaded, question, choice):
    """The log-likelihood of the choice after the question, reckoned without the harness."""
    before = loaded.tokenizer(question, return_tensors="pt", add_special_tokens=False).input_ids
    ids = loaded.tokenizer(question + choice, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        scores = loaded.model(input_ids=ids).logits.log_softmax(-1)[0]
    return sum(scores[i - 1, ids[0, i]].item() for i in range(before.shape[1], ids.shape[1]))


def test_a_local_task_through_the_command_offline(folder):
    out = folder.parent / "scores.json"
    args = ["evaluate", "demo", "--tasks", "colours", "--tasks-path", str(folder), "--json", str(out)]
    said = CliRunner().invoke(app, args)
    assert said.exit_code == 0 and "colours" in said.output and "±" in said.output, said.output
    model = json.loads(out.read_text())["models"][0]
    found = model["tasks"]["colours"]
    assert (found["items"], found["shots"], found["version"]) == (3, 0, "2.0") and model["texts"] == {}
    loaded = load("demo")
    right = 0
    for item in ITEMS:
        scores = [likelihood(loaded, item["question"], choice) for choice in item["choices"]]
        right += scores.index(max(scores)) == item["gold"]
    assert 0 < right < 3 and found["metrics"]["acc"]["value"] == pytest.approx(right / 3)
    assert found["metrics"]["acc"]["stderr"] > 0


def test_what_cannot_be_run_is_said(folder):
    with pytest.raises(UsageError, match="no task 'colors'"):
        Tasks(["colors"], folder)
    with pytest.raises(UsageError, match="is no folder"):
        Tasks(["colours"], folder / "nowhere")
    (folder.parent / "items.json").unlink()
    with pytest.raises(SlimrankError, match="cannot be run on demo"):
        Tasks(["colours"], folder).measure(load("demo"))


def test_some_of_the_tasks_alone(folder):
    (folder / "tones.yaml").write_text((folder / "colours.yaml").read_text().replace("colours", "tones"))
    tasks, loaded = Tasks(["colours", "tones"], folder, limit=2), load("demo")
    assert tasks.measure(loaded, ["tones"]) == {"tones": tasks.measure(loaded)["tones"]}
