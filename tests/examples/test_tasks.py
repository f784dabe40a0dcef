"""The layouts that the example tasks read, each on an item made up here."""

import importlib.util
from pathlib import Path

import pytest
import yaml

datasets = pytest.importorskip("datasets")
FOLDER = Path(__file__).parents[2] / "examples" / "tasks"


@pytest.fixture(scope="module")
def formats():
    spec = importlib.util.spec_from_file_location("formats", FOLDER / "formats.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(*items):
    return datasets.Dataset.from_list(list(items))


def test_questions_with_options_inside(formats):
    text = "Please choose the correct answer to the question: Which is wet?\n\nAnswer1: fire Answer2: the sea"
    made = formats.questions(rows({"instruction": f"{text}\n\nAnswer format: answer1/answer2", "answer": "answer2"}))
    assert made[0] == {"question": "Which is wet?", "choices": ["fire", "the sea"], "gold": 1}


def test_blanks(formats):
    text = "complete the given sentence: Ann lent Bea a pen since _ had two.\n\nOption1: Ann Option2: Bea"
    made = formats.blanks(rows({"instruction": f"{text} Answer format: option1/option2", "answer": "option1"}))
    assert made[0]["choices"] == ["Ann lent Bea a pen since Ann", "Ann lent Bea a pen since Bea"]
    assert made[0]["end"] == "had two." and made[0]["gold"] == 0


def test_sums(formats):
    text = "what is 1 + 1 ? The options: A ) 1 , B ) 2 , C ) 1 , 000 , D ) none , E ) 4"
    made = formats.sums(rows({"instruction": text, "answer": "B"}))
    assert made[0] == {"question": "what is 1 + 1 ?", "choices": ["1", "2", "1 , 000", "none", "4"], "gold": 1}


def test_six_lines_an_item(formats):
    lines = ["A man sits. he", "3", "sings.", "is a hat.", "eats stone.", "stands up."] * 2
    made = formats.endings(rows(*({"text": line} for line in lines)))
    assert len(made) == 2 and made[1]["gold"] == 3 and made[1]["choices"] == lines[2:6]


def test_labels_in_a_file_of_their_own(formats, tmp_path, monkeypatch):
    (tmp_path / "goals.jsonl").write_text(
        '{"goal": "a", "sol1": "b", "sol2": "c"}\n{"goal": "d", "sol1": "e", "sol2": "f"}'
    )
    (tmp_path / "labels.lst").write_text("1\n0\n")
    made = formats.piqa(str(tmp_path / "goals.jsonl"), str(tmp_path / "labels.lst"), version=1)
    assert made["validation"]["label"] == [1, 0]


def test_truthful_answers_come_first_and_share_the_probability(formats):
    row = {"Question": "q", "Best Answer": "yes", "Correct Answers": "yes; indeed", "Incorrect Answers": "no; never"}
    assert formats.best_answer(rows(row))[0]["choices"] == ["yes", "no", "never"]
    item = formats.all_answers(rows(row))[0]
    assert item["choices"] == ["yes", "indeed", "no", "never"] and item["right"] == 2
    assert formats.probability_of_right(item, [(0.0, 0), (0.0, 0), (0.0, 0), (-1e9, 0)])["acc"] == pytest.approx(2 / 3)


def test_every_task_file_is_named_as_its_task():
    files = sorted(FOLDER.glob("*.yaml"))
    for file in files:
        text = file.read_text().replace("!function ", "")
        assert yaml.safe_load(text)["task"] == file.stem
    assert len(files) == 11
