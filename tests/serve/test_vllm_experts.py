"""Without vLLM: what its plugin makes of compressed experts, when it reads the checkpoint's config."""

import importlib
import sys
from types import ModuleType

import pytest

from slimrank.checkpoint.schema import VERSION
from slimrank.errors import SlimrankError


class Anything:
    """Has every attribute, and is a decorator that changes nothing, whatever its arguments."""

    def __getattr__(self, name):
        return Anything()

    def __call__(self, *args, **kwargs):
        return lambda cls: cls


class AnyModule(ModuleType):
    """Has every class that is asked for, and functions and values like Anything."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name.islower():
            return Anything()
        return type(name, (), {})


@pytest.fixture
def plugin(monkeypatch):
    """slimrank.serve.vllm beside modules of vLLM that hold nothing."""
    names = ["vllm"]

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "vllm" and not name.startswith("vllm."):
                return None
            return importlib.machinery.ModuleSpec(name, Finder, is_package=True)

        @staticmethod
        def create_module(spec):
            names.append(spec.name)
            return AnyModule(spec.name)

        @staticmethod
        def exec_module(module):
            module.__path__ = []

    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed: test_vllm.py runs it")
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "slimrank.serve.vllm", raising=False)
    yield importlib.import_module("slimrank.serve.vllm")
    for name in [*names, *(name for name in sys.modules if name.startswith("slimrank.serve.vllm"))]:
        sys.modules.pop(name, None)


def test_compressed_experts_are_refused_and_the_way_out_is_said(plugin):
    one = {"form": "low_rank", "rank": 4}
    linear, experts = {"model.layers.0.mlp.down_proj": one}, {"form": "experts", "ups": one, "downs": one}
    assert plugin.SlimrankConfig.from_config({"version": VERSION, "layers": linear}) is not None
    layers = linear | {"model.layers.1.mlp.experts": experts}
    with pytest.raises(
        SlimrankError, match=r"model\.layers\.1\.mlp\.experts is compressed.*slimrank export --to dense"
    ):
        plugin.SlimrankConfig.from_config({"version": VERSION, "layers": layers})
