import json

import pytest
import torch

from slimrank.recipe import load_recipe

CALIBRATION = ["--calibration", "text.txt", "--samples", "8", "--window", "32", "--max-windows", "4"]
QUICK = ["dense", *CALIBRATION, "--recipes", "svd-llm", "--keeps", "0.8"]


def refused(capsys, run, name, *arguments) -> tuple[int, str]:
    """The exit status and the last line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        run(name, *arguments)
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()[-1]


def test_what_is_there_is_not_measured_again(place, run, script, monkeypatch, capsys):
    run("recipes", *QUICK, "--text", "a/test.txt", "--seeds", "3", "--out", "rows.json")
    before = json.loads((place / "rows.json").read_text())
    assert [(row["recipe"], row["keep"], row["seed"]) for row in before["rows"]] == [("svd-llm", 0.8, 3)]
    monkeypatch.setattr(script("provenance"), "processor", lambda device: f"another {device}")
    run("recipes", *QUICK, "--text", "a/test.txt", "--seeds", "3,4", "--out", "rows.json")
    after = json.loads((place / "rows.json").read_text())
    assert after["rows"][0] == before["rows"][0] and after["rows"][1]["seed"] == 4
    assert after["rows"][1]["machine"] == "another cpu" != after["rows"][0]["machine"]
    assert after["settings"] == before["settings"] and after["rows"][0]["torch"] == torch.__version__
    status, said = refused(capsys, run, "recipes", *QUICK, "--text", "text.txt", "--out", "rows.json")
    assert status == 2 and said.startswith("rows.json was made with texts ['test.txt: ")


def test_several_calibration_texts_are_in_the_settings(place, run, script):
    texts = ["--calibration", "text.txt*0.25", "--calibration", "b/test.txt"]
    run("recipes", "dense", *texts, *CALIBRATION[2:], *QUICK[-4:], "--text", "a/test.txt", "--out", "rows.json")
    of = script("rows").calibrated_on
    one, other = of(["text.txt"]), of(["b/test.txt"])
    assert one.startswith("text.txt: ") and other.startswith("test.txt: ")
    settings = json.loads((place / "rows.json").read_text())["settings"]
    assert settings["calibration"] == f"0.25 of {one}; 0.75 of {other}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "x=a/test.txt", "--text", "y=b/test.txt"], "--text: 2 texts are called test.txt: give them files"),
        (["--text", "none.txt"], "none.txt does not exist: give the path of a text that does"),
        (["--text", "a/test.txt", "--recipes", "svdllm"], "There is no recipe 'svdllm': give a YAML file or one of"),
        (["--text", "a/test.txt", "--keeps", "80"], "argument --keeps: --keep 80 must be above 0 and at most 1"),
        (["--text", "a/test.txt", "--keeps", "0.8;0.6"], "argument --keeps: --keep '0.8;0.6' must be numbers"),
        (["--text", "a/test.txt", "--jobs", "0"], "argument --jobs: '0' must be a whole number of at least 1"),
        (["--text", "a/test.txt", "--out", "a/test.txt"], "--out a/test.txt is there and holds no rows"),
    ],
)
def test_bad_input_is_one_sentence(place, run, capsys, arguments, message):
    status, said = refused(capsys, run, "papers", *QUICK, "--out", "rows.json", *arguments)
    assert status == 2 and message in said
    assert not (place / "rows.json").exists()
    assert refused(capsys, run, "papers", *QUICK, "--out", "a") == (1, "a: Is a directory.")


def test_the_list_of_models_needs_no_file(run, capsys):
    run("papers", "--list")
    assert "llama-7b: huggyllama/llama-7b, windows of 2048" in capsys.readouterr().out
    status, said = refused(capsys, run, "papers", "dense")
    assert status == 2 and said.endswith("give a model and --out, or --list")


def test_without_the_hub_it_says_what_to_give(place, run, script, monkeypatch, capsys):
    def nothing(*_, **__):
        raise ConnectionError("no network\nhere.")

    monkeypatch.setattr(script("papers"), "hf_hub_download", nothing)
    status, said = refused(capsys, run, "papers", "llama-7b", "--out", "rows.json")
    assert (status, said) == (1, "C4 cannot be fetched: no network here. Give --text c4=FILE.")


def test_local_files_take_the_place_of_a_papers_model_and_texts(place, run, capsys):
    texts = ["--text", "wikitext2=a/test.txt", "--text", "c4=text.txt"]
    local = ["llama-7b", "--model", "dense", *CALIBRATION, *texts, "--recipes", "svd,svd-llm", "--keeps", "0.8,0.6"]
    run("papers", *local, "--out", "rows.json")
    content, said = json.loads((place / "rows.json").read_text()), capsys.readouterr().out
    assert (content["settings"]["name"], content["settings"]["model"]) == ("llama-7b", "dense")
    rows = {(row["recipe"], row["keep"]): row["perplexity"] for row in content["rows"]}
    cells = [(rows["svd-llm", keep][text], theirs) for text, keep, theirs in (
        ("test.txt", 0.8, "7.94"), ("test.txt", 0.6, "13.11"), ("text.txt", 0.8, "15.84"), ("text.txt", 0.6, "49.83")
    )]  # fmt: skip
    assert "| recipe | wikitext2 0.8 | wikitext2 0.6 | c4 0.8 | c4 0.6 | seconds |" in said
    assert "| svd-llm | " + " | ".join(f"{ours:.2f} ({theirs})" for ours, theirs in cells) + " | " in said
    assert f"| svd | {rows['svd', 0.8]['test.txt']:.2f} | " in said


def test_the_papers_are_taken_apart_on_one_calibration_row_by_row(place, run, script, monkeypatch, capsys):
    apart = ["dense", *CALIBRATION, "--text", "a/test.txt", "--keeps", "0.6", "--trials", "2", "--out", "rows.json"]
    run("papers_apart", *apart, "--variants", "svd-llm,dipsvd none uniform")
    capsys.readouterr()
    first = json.loads((place / "rows.json").read_text())["rows"]
    run("papers_apart", *apart)
    content, said = json.loads((place / "rows.json").read_text()), capsys.readouterr().out
    variants = script("papers_apart").VARIANTS
    lost = {row["variant"]: row["nats_lost"]["test.txt"] for row in content["rows"]}
    assert lost.keys() == variants.keys() and content["rows"][: len(first)] == first
    assert content["settings"]["trials"] == 2 and "set" not in content["settings"]
    assert lost["svd-llm"] == lost["dipsvd none uniform"] == pytest.approx(lost["svd-llm-v2 truncation"], rel=0.02)
    assert lost["svd-llm-v2"] == pytest.approx(lost["svd-llm-v2 allocation"], rel=0.02)
    assert lost["duo-svd columns"] != lost["svd-llm"] != lost["duo-svd allocation"]
    assert lost["dipsvd paper uniform"] != lost["dipsvd released uniform"]
    cells = " | ".join(f"{lost[f'dipsvd paper {shares}']:.3f}" for shares in ("uniform", "released", "paper", "bayes"))
    assert f"| paper | {cells} |" in said
    assert f"| none | {lost['svd-llm']:.3f} | {lost['dipsvd none released']:.3f} | " in said
    assert f"| duo-svd | {lost['duo-svd']:.3f} | " in said
    status, told = refused(capsys, run, "papers_apart", *apart, "--variants", "dipsvd,duo")
    assert status == 2 and told.endswith("'duo' begins no variant: --list prints them.")
    status, told = refused(capsys, run, "papers_apart", *apart, "--windows", "9")
    assert (status, told) == (2, "--windows 9 is more than --samples 8: lower it.")
    run("papers_apart", "--list")
    assert "duo-svd columns: duo-svd allocate=uniform\n" in capsys.readouterr().out


def test_every_switch_of_the_ablation_is_a_recipe_and_is_measured_beside_the_recipe_itself(place, run, script, capsys):
    for name, settings in script("ablation").VARIANTS.values():
        load_recipe(name, [setting.replace("WINDOWS", "4") for setting in settings])
    asked = ["dense", *CALIBRATION, "--text", "a/test.txt", "--keeps", "0.6", "--out", "rows.json"]
    run("ablation", *asked, "--variants", "svd-llm,slimrank,targets not shifted,G its mean diagonal")
    content, said = json.loads((place / "rows.json").read_text()), capsys.readouterr().out
    lost = {row["variant"]: row["nats_lost"]["test.txt"] for row in content["rows"]}
    assert len(lost) == len(set(lost.values())) == 4
    assert f"| targets not shifted | {lost['targets not shifted']:.3f} | " in said


def test_block_scores_stand_beside_what_cutting_a_block_does(place, run, capsys):
    scores = ["dense", "--calibration", "text.txt", "--samples", "8", "--window", "32", "--keeps", "0.8,0.6"]
    run("block_scores", *scores, "--out", "rows.json")
    rows, said = json.loads((place / "rows.json").read_text())["rows"], capsys.readouterr().out
    assert [row["keep"] for row in rows] == [0.8, 0.6] and rows[0]["whole"] < rows[1]["whole"]
    for row in rows:
        blocks = row["blocks"]
        assert all(0 < value < row["whole"] for value in blocks["alone"] + blocks["spared"])
        assert all(1 <= value <= 32 for value in blocks["effective_rank"])
        assert all(1 / 32 < value < 1 for value in blocks["largest"])
    rising = rows[0]["blocks"]["gradient"][0] < rows[0]["blocks"]["gradient"][1]
    same = rising == (rows[0]["blocks"]["alone"][0] < rows[0]["blocks"]["alone"][1])
    assert f"| 0.8 | gradient | {1 if same else -1:.2f} | " in said
