"""The command line: its commands stand in commands/, and every error becomes one sentence and an exit status."""

import os
import sys
from typing import Annotated, Any

import typer

from slimrank.cli.commands import COMMANDS
from slimrank.errors import SlimrankError, UsageError
from slimrank.runtime.versions import versions

MisusedOption: Any = typer.BadParameter.__base__  # click's class, or typer's copy of it in newer versions

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Compress Hugging Face causal language models by SVD, with an honest account of what it costs.",
    epilog="Start with: slimrank compress demo --keep 0.6 --out small",
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(help="Show the traceback of errors.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the versions that a bug report needs.")
    ] = False,
) -> None:
    """Options of every command."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"
    if several and context.invoked_subcommand not in (None, "compress"):
        raise UsageError(f"slimrank {context.invoked_subcommand} runs in one process: start it without torchrun.")
    if show_version:
        for name, number in versions().items():
            typer.echo(f"{name:<18} {number}")
        raise typer.Exit


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """The console entry point: errors become one sentence and an exit status."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are not news, its failures become our sentence
    debug = "--debug" in sys.argv
    try:
        raise SystemExit(app(prog_name="slimrank", standalone_mode=False))
    except SlimrankError as error:
        if debug:
            raise
        _fail(str(error), error.status)
    except MisusedOption as error:
        _fail(_sentence(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("Interrupted by Ctrl-C before there was a result; with --out the same command resumes where it was.", 130)
    except OSError as error:
        if debug:
            raise
        _fail(f"{error.filename or 'The disk'}: {error.strerror or error}.", 1)
    except (MemoryError, RuntimeError) as error:
        if debug or not _out_of_memory(error):
            raise
        _fail("Out of memory: use a shorter --window, a smaller model, or a machine with more memory.", 1)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ended: torch says so by a class of its own on a GPU, and on a CPU by words alone."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _sentence(error: Any) -> str:
    """What is wrong with the command line, and where to read on."""
    path = error.ctx.command_path if error.ctx else "slimrank"
    message = error.format_message()
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See {path} --help."


def _fail(message: str, status: int) -> None:
    from slimrank.cli import console

    console.error(message)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
