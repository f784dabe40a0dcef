import pytest
from typer.testing import CliRunner

from slimrank.cli import app
from slimrank.errors import UsageError


@pytest.mark.parametrize("option", ["--tasks-path", "--limit"])
def test_what_is_for_tasks_is_refused_without_them(option):
    with pytest.raises(UsageError, match=f"{option} is for --tasks"):
        CliRunner().invoke(app, ["evaluate", "demo", option, "3"], catch_exceptions=False)
