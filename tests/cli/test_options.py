import pytest
import torch
import typer
from typer.testing import CliRunner

from slimrank.cli.options import Device


@pytest.mark.parametrize(
    ("there", "asked", "found"),
    [(True, [], "cuda"), (False, [], "cpu"), (True, ["--device", "cpu"], "cpu"), (False, ["--device", "cuda"], "cuda")],
)
def test_auto_is_a_cuda_device_where_there_is_one(monkeypatch, there, asked, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    app = typer.Typer()

    @app.command()
    def show(device: Device = "auto") -> None:
        typer.echo(device)

    assert CliRunner().invoke(app, asked).output == f"{found}\n"
