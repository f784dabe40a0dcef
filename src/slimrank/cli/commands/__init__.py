"""The commands: each a thin function that parses, calls the library and shows the outcome; a file and a line here."""

from collections.abc import Callable

from slimrank.cli.commands.bench import bench
from slimrank.cli.commands.compare import compare
from slimrank.cli.commands.compress import compress
from slimrank.cli.commands.evaluate import evaluate
from slimrank.cli.commands.export import export
from slimrank.cli.commands.plan import plan
from slimrank.cli.commands.quantize import quantize
from slimrank.cli.commands.recipes import recipes
from slimrank.cli.commands.report import report

COMMANDS: tuple[Callable[..., None], ...] = (
    compress,
    plan,
    evaluate,
    compare,
    bench,
    export,
    quantize,
    recipes,
    report,
)
