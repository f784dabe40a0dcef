"""From the layouts of local files to items of the harness; each function is a task's process_docs."""

import re
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

OPTION = re.compile(r"(?:Answer|Option)\d+: (.*?)(?=\s*(?:Answer|Option)\d+: |\s*Answer format: )", re.DOTALL)
MATH_OPTION = re.compile(r"[ABCDE] \) (.*?)(?= , [ABCDE] \) |$)", re.DOTALL)


def questions(rows: Dataset) -> Dataset:
    """ARC and OpenBookQA: question, choices and the number of the right one."""
    items = []
    for row in rows:
        question = row["instruction"].split("question: ", 1)[1].split("\n\nAnswer1: ", 1)[0]
        items.append({"question": question, "choices": OPTION.findall(row["instruction"]), "gold": _number(row)})
    return Dataset.from_list(items)


def blanks(rows: Dataset) -> Dataset:
    """WinoGrande: the beginning with either option in the blank, and the end that both share."""
    items = []
    for row in rows:
        sentence = row["instruction"].split("sentence: ", 1)[1].split("\n\nOption1: ", 1)[0]
        begin, _, end = sentence.partition("_")
        options = OPTION.findall(row["instruction"])
        items.append({"gold": _number(row), "choices": [begin + option for option in options], "end": end.strip()})
    return Dataset.from_list(items)


def sums(rows: Dataset) -> Dataset:
    """MathQA: the problem, its five options and the number of the right one."""
    items = []
    for row in rows:
        problem, _, options = row["instruction"].partition(" The options: ")
        choices = [option.strip() for option in MATH_OPTION.findall(options.strip())]
        items.append({"question": problem.strip(), "choices": choices, "gold": "ABCDE".index(row["answer"].strip())})
    return Dataset.from_list(items)


def endings(rows: Dataset) -> Dataset:
    """HellaSwag: six lines an item."""
    lines = list(rows["text"])
    starts = range(0, len(lines) - 5, 6)
    return Dataset.from_list(
        [{"query": lines[s], "gold": int(lines[s + 1]), "choices": list(lines[s + 2 : s + 6])} for s in starts]
    )


def piqa(goals: str, labels: str, **metadata: object) -> DatasetDict:
    """PIQA: the goals with the labels of the other file."""
    rows = Dataset.from_json(goals)
    gold = [int(line) for line in Path(labels).read_text(encoding="utf-8").split()]
    return DatasetDict(validation=rows.add_column("label", gold))


def best_answer(rows: Dataset) -> Dataset:
    """TruthfulQA, one right answer: it comes first."""
    return Dataset.from_list(
        [{"question": r["Question"], "choices": [r["Best Answer"], *_listed(r["Incorrect Answers"])]} for r in rows]
    )


def all_answers(rows: Dataset) -> Dataset:
    """TruthfulQA, several right answers: they come first."""
    items = []
    for row in rows:
        right, wrong = _listed(row["Correct Answers"]), _listed(row["Incorrect Answers"])
        items.append({"question": row["Question"], "choices": right + wrong, "right": len(right)})
    return Dataset.from_list(items)


def probability_of_right(item: dict, results: list) -> dict[str, float]:
    """TruthfulQA, several right answers: their share of the probability of all answers."""
    likelihood = np.exp(np.array([result[0] for result in results]))
    return {"acc": float(likelihood[: item["right"]].sum() / likelihood.sum())}


def _number(row: dict) -> int:
    return int(re.sub(r"\D", "", row["answer"])) - 1


def _listed(answers: str) -> list[str]:
    return [answer.strip() for answer in answers.split(";") if answer.strip()]
