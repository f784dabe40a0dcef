import importlib.util
import json
from pathlib import Path

import pytest
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, LlamaConfig, RwkvConfig

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "architecture_sweep.py"
ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "architectures.json"


@pytest.fixture
def sweep(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("sweep", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", [LlamaConfig, RwkvConfig])
def test_a_model_is_taken_through(sweep, kind):
    row = sweep.apart(kind)
    assert row["verdict"] == {LlamaConfig: "right", RwkvConfig: "partly"}[kind], row
    assert row["share"] == pytest.approx({LlamaConfig: 1.0, RwkvConfig: 0.98}[kind], abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", list(MODEL_FOR_CAUSAL_LM_MAPPING), ids=lambda kind: kind.__name__)
def test_no_model_is_wrong_or_a_traceback(sweep, kind):
    row = sweep.apart(kind)
    assert row["verdict"] not in ("wrong", "traceback"), row


def test_the_page_is_made_from_the_rows(sweep):
    data = json.loads(ROWS.read_text())
    rows = data["rows"]
    page = (ROWS.parents[2] / "docs" / "architectures.md").read_text()
    assert page == sweep.page(rows, data["versions"]["transformers"])
    assert len({row["commit"] for row in rows}) == 1 and not rows[0]["commit"].endswith("+")
    assert {row["verdict"] for row in rows} <= {"right", "partly", "refused", "not built"}
