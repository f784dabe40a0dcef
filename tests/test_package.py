"""What is published: the wheel's files, its entry points and its metadata."""

import ast
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

build = pytest.importorskip("hatchling.build")
classifiers = pytest.importorskip("trove_classifiers").classifiers

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """name -> bytes of every file in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build.build_wheel(str(folder))
    with ZipFile(folder / name) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def information(wheel, name):
    """A file of the wheel's dist-info folder."""
    return next(data for path, data in wheel.items() if path.endswith(f".dist-info/{name}"))


def test_the_wheel_holds_the_package_as_it_is_and_nothing_else(wheel):
    files = [path for path in SOURCE.rglob("*") if path.is_file()]
    package = {
        path.relative_to(SOURCE).as_posix(): path.read_bytes()
        for path in files
        if "__pycache__" not in path.parts and not any(part.endswith(".egg-info") for part in path.parts)
    }
    inside = {name: data for name, data in wheel.items() if ".dist-info/" not in name}
    assert inside == package
    assert {name.split("/")[0] for name in inside} == {"slimrank", "slimrank_command.py"}


def test_the_wheel_holds_what_is_no_code(wheel):
    recipes = {path.stem for path in (SOURCE / "slimrank/recipes").glob("*.yaml")}
    assert {"slimrank", "svd", "svd-llm"} <= recipes
    for name in (
        "demo/model/model.safetensors",
        "demo/model/tokenizer.json",
        "demo/text/calibration.txt",
        "demo/text/evaluation.txt",
        "demo/NOTICE",
        "py.typed",
        *(f"recipes/{recipe}.yaml" for recipe in recipes),
        *(f"report/templates/{path.name}" for path in (SOURCE / "slimrank/report/templates").iterdir()),
    ):
        assert f"slimrank/{name}" in wheel, name


def test_entry_points_name_functions_that_are_there(wheel):
    parser = ConfigParser()
    parser.read_string(information(wheel, "entry_points.txt").decode())
    points = {group: dict(parser[group]) for group in parser.sections()}
    assert points == {
        "console_scripts": {"slimrank": "slimrank_command:main"},
        "vllm.general_plugins": {"slimrank": "slimrank.serve.vllm:register"},
    }
    for group in points.values():
        for target in group.values():
            module, function = target.split(":")
            path = module.replace(".", "/")
            tree = ast.parse(wheel.get(f"{path}.py") or wheel[f"{path}/__init__.py"])
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_metadata_is_what_an_index_takes(wheel):
    metadata = message_from_bytes(information(wheel, "METADATA"))
    assert set(metadata.get_all("Classifier")) <= classifiers
    assert not any("License ::" in one for one in metadata.get_all("Classifier"))  # not beside a License-Expression
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "src/slimrank/demo/NOTICE"]
    assert information(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Programming Language :: Python :: 3.11" in metadata.get_all("Classifier")
    assert metadata["Requires-Python"] == ">=3.11"
