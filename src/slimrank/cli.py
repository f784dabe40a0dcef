"""The command line: its commands stand in commands/, and every error becomes one sentence and an exit status."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from slimrank.commands import COMMANDS
from slimrank.errors import SlimrankError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Compress Hugging Face causal language models by SVD, with an honest account of what it costs.",
)


@app.callback(invoke_without_command=True)
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print versions and stop.")] = False,
) -> None:
    """Options of every command."""
    if show_version:
        names = ("slimrank", "torch", "transformers", "safetensors")
        typer.echo("  ".join(f"{name} {version(name)}" for name in names))
        raise typer.Exit


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """The console entry point: errors become one sentence and an exit status."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are not news, its failures become our sentence
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except SlimrankError as error:
        if debug:
            raise
        _fail(str(error), error.status)
    except SystemExit as stop:
        if stop.code == 130:  # how typer ends on Ctrl-C
            _fail("Stopped by Ctrl-C; nothing was written.", 130)
        raise
    except OSError as error:
        if debug:
            raise
        _fail(f"{error.filename or 'The disk'}: {error.strerror or error}.", 1)
    except MemoryError:
        _fail("Out of memory: use fewer --samples or a shorter --window.", 1)


def _fail(message: str, status: int) -> None:
    from slimrank import console

    console.error(message)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
