"""The commands: each a thin function that parses, calls the library and shows the outcome; a file and a line here."""

from collections.abc import Callable

from slimrank.commands.bench import bench
from slimrank.commands.compare import compare
from slimrank.commands.compress import compress
from slimrank.commands.evaluate import evaluate
from slimrank.commands.export import export
from slimrank.commands.plan import plan
from slimrank.commands.quantize import quantize
from slimrank.commands.recipes import recipes
from slimrank.commands.report import report

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
