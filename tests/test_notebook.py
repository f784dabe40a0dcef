"""The notebook runs from top to bottom, each step stopping before the next."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")


def test_the_notebook_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(ROOT / "notebooks" / "pipeline.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # outputs are not committed
    kernel = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client = nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv = kernel
    client.execute()
    measured = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "6 blocks" in measured and "dense" in measured and "predicted" in measured
