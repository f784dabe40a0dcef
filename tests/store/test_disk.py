import pytest
from typer.testing import CliRunner

from slimrank.cli.main import app
from slimrank.errors import UsageError


@pytest.mark.parametrize(
    "command",
    [["plan", "nowhere", "--out"], ["evaluate", "nowhere", "--json"], ["bench", "nowhere", "--json"]],
)
@pytest.mark.parametrize(
    ("file", "message"),
    [(".", r" \. is a folder: name a file"), ("no/x.json", " no/x.json: the folder no does not exist")],
)
def test_a_file_that_cant_be_written_is_refused_before_the_model_is_loaded(
    command, file, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=command[-1] + message):
        CliRunner().invoke(app, [*command, file], catch_exceptions=False)
    assert not list(tmp_path.iterdir())
