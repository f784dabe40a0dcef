"""The pages as text: what stands in them, and that they load nothing."""

import html
import json
import re
import shlex
import shutil

import pytest
import torch
from typer.testing import CliRunner

from slimrank import load
from slimrank.checkpoint.account import Account
from slimrank.cli.main import app
from slimrank.errors import MissingLibrary, UsageError
from slimrank.plan import Plan
from slimrank.report import charts, write_report


def block(page, name):
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_a_run_is_told_whole(run_folder, measured):
    page = write_report(run_folder, evaluation=measured[0], bench=measured[1]).read_text()
    plan, account = Plan.load(run_folder / "slimrank" / "plan.json"), Account.load(run_folder)
    assert len(page) < 2_000_000
    for one in (
        plan.model["sha256"],
        plan.calibration["sha256"],
        plan.calibration["tokenizer"],
        account.versions["torch"],
    ):
        assert one in page
    assert html.escape(plan.recipe.to_yaml().splitlines()[-1]) in page
    linears = block(page, "data")["linears"]
    assert linears["name"] == list(plan.linears) and linears["cell"] == [str(p.rank) for p in plan.linears.values()]
    assert linears["measured"] == pytest.approx([p.measured for p in plan.linears.values()], rel=1e-3)
    curves = block(page, "data")["curves"]
    assert sum(curves["cut"]) == len(plan.linears) and len(curves["rank"]) == sum(
        len(c.ranks) for c in account.curves.values()
    )
    assert list(block(page, "charts")) == ["map-kept", "spectra-chart", "agreement", "map-measured", "stages"]
    assert all(f'id="{name}"' in page for name in block(page, "charts"))
    assert "small &amp; &lt;fast&gt;" in page and "+0.2500" in page  # from the evaluation
    assert "<td>0.50 (0.25)</td>" in page and "<li>a.txt is unlike it.</li>" in page
    assert "<td>piqa</td><td>acc</td><td>9</td><td>0</td><td>0.5000</td>" in page
    assert "80.0" in page and "It waits for memory." in page  # from the bench: 8 tokens in 0.1 s


def test_a_mixtures_page_has_a_rank_and_the_tokens_of_every_expert(mixture_folder):
    page = write_report(mixture_folder).read_text()
    plan, data = Plan.load(mixture_folder / "slimrank" / "plan.json"), block(page, "data")
    experts = data["experts"]
    own = {name: linear for name, linear in plan.linears.items() if ".experts." in name}
    assert experts["name"] == list(own) and len(own) == 2 * 4 * 2
    assert experts["expert"] == [int(name.split(".")[-2]) for name in own]
    assert experts["cell"] == ["dense" if one.rank is None else str(one.rank) for one in own.values()]
    assert experts["tokens"] == [one.routed for one in own.values()]
    for kind in ("gate_up_proj", "down_proj"):
        for index in range(2):  # each token of 8 windows of 32 goes to 2 experts
            rows = zip(experts["type"], experts["block"], experts["tokens"], strict=True)
            assert sum(tokens for *place, tokens in rows if place == [kind, index]) == 2 * 8 * 32
    together = data["linears"]["name"].index("model.layers.0.mlp.experts.*.down_proj")
    downs = [one for name, one in own.items() if name.startswith("model.layers.0") and name.endswith("down_proj")]
    kept = sum(one.parameters for one in downs) / sum(one.shape[0] * one.shape[1] for one in downs)
    assert data["linears"]["kept"][together] == pytest.approx(kept, rel=1e-3)
    charts = block(page, "charts")
    assert "experts-kept" in charts and "experts-tokens" in charts and all(f'id="{name}"' in page for name in charts)


def test_nothing_is_loaded_from_elsewhere(run_folder):
    page = write_report(run_folder).read_text()
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "default-src 'none'" in outside and not re.search(r"(src|href)=[\"']?(https?:)?//", outside)


def test_the_commands_in_the_page_make_the_same_weights_again(run_folder, tmp_path):
    page = write_report(run_folder).read_text()
    by_plan, by_recipe = (
        shlex.split(html.unescape(c)) for c in re.findall(r'<pre class="command">(.*?)</pre>', page, re.DOTALL)
    )
    (tmp_path / "recipe.yaml").write_text(
        html.unescape(re.search(r'<pre class="recipe">(.*?)</pre>', page, re.DOTALL)[1])
    )
    by_recipe[by_recipe.index("recipe.yaml")] = str(tmp_path / "recipe.yaml")
    for index, command in enumerate((by_plan, by_recipe)):
        result = CliRunner().invoke(app, [*command[1:], "--out", str(tmp_path / str(index))])
        assert result.exit_code == 0, result.output
        again = (tmp_path / str(index) / "model.safetensors").read_bytes()
        assert again == (run_folder / "model.safetensors").read_bytes()


def test_the_commands_name_the_demos_text_and_where_to_compute(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    plan, account = tmp_path / "run/slimrank/plan.json", tmp_path / "run/slimrank/account.json"
    plan.write_text(plan.read_text().replace(str(run_folder.parent / "text.txt"), "demo (calibration)"))
    account.write_text(account.read_text().replace('"float32"', '"bfloat16"'))
    page = html.unescape(write_report(tmp_path / "run").read_text())
    same = ["--calibration", "demo", "--device", "cpu", "--dtype", "bfloat16"]
    commands = [shlex.split(c) for c in re.findall(r'<pre class="command">(.*?)</pre>', page, re.DOTALL)]
    assert [command[-6:] for command in commands] == [same, same]
    assert commands[0][3:5] == ["--plan", str(plan)] and commands[1][3:7] == [
        "--recipe",
        "recipe.yaml",
        "--keep",
        "0.6",
    ]


def test_a_comparison_is_told_whole(comparison_folder):
    page = (comparison_folder / "report.html").read_text()
    rows = json.loads((comparison_folder / "compare.json").read_text())["rows"]
    data = block(page, "data")
    assert len(page) < 2_000_000 and data["measured"]["recipe"] == ["dense", "svd", "svd", "svd-llm", "svd-llm"]
    text = next(iter(rows[0]["texts"]))
    assert data["measured"]["perplexity"] == [row["texts"][text]["perplexity"] for row in rows]
    assert set(data["linears"]["run"]) == {"svd at 0.6", "svd at 0.4", "svd-llm at 0.6", "svd-llm at 0.4"}
    assert list(block(page, "charts")) == ["frontier-chart", "map-kept", "agreement"]
    assert "route: projector" in page and rows[1]["plan"]["model"]["sha256"] in page


def test_a_comparison_takes_no_other_measurements(comparison_folder, measured):
    for more in ({"evaluation": measured[0]}, {"bench": measured[1]}):
        with pytest.raises(UsageError, match="is a comparison: leave them out"):
            write_report(comparison_folder, **more)


def test_what_is_missing_is_said_in_a_sentence(run_folder, tmp_path):
    with pytest.raises(UsageError, match=r"holds neither slimrank/plan\.json nor compare\.json"):
        write_report(tmp_path)
    shutil.copytree(run_folder, tmp_path / "old")
    (tmp_path / "old" / "slimrank" / "account.json").unlink()
    with pytest.raises(UsageError, match=r"account\.json is missing"):
        write_report(tmp_path / "old")
    with pytest.raises(UsageError, match=r"the folder .*nowhere does not exist"):
        write_report(run_folder, tmp_path / "nowhere" / "page.html")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(UsageError, match=r"bad\.json has no 'models' in it"):
        write_report(run_folder, evaluation=tmp_path / "bad.json")


def test_without_the_library_compress_says_what_to_install_and_goes_on(run_folder, tmp_path, monkeypatch):
    def missing():
        raise MissingLibrary("The report needs altair.")

    monkeypatch.setattr(charts, "altair", missing)
    args = ["compress", str(run_folder.parent / "dense"), "--plan", str(run_folder / "slimrank" / "plan.json")]
    result = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and "needs altair" in result.output
    assert load(str(tmp_path / "out")).dtype == torch.bfloat16 and not (tmp_path / "out/slimrank/report.html").exists()
