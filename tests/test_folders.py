"""The package's folders import one way, in the order in which CONTRIBUTING.md lists them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/slimrank"


def listed() -> list[str]:
    """The folders and modules of the table, from the top."""
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things go")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return [re.sub(r"/$|\.py$", "", name) for row in rows for name in re.findall(r"`([^`]+)`", row)]


def imports() -> Iterator[tuple[str, str]]:
    """Pairs of folders (or modules beside them) of which the first imports from the second."""
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slimrank."):
                yield own, node.module.split(".")[1]


def test_every_folder_is_listed():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders - {"demo"} <= set(listed())


def test_folders_import_only_from_those_below():
    order = listed()
    upward = {
        (one, other)
        for one, other in imports()
        if one != other and {one, other} <= set(order) and order.index(one) > order.index(other)
    }
    assert not upward
