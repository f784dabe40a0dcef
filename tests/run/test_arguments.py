"""Arguments of a wrong type are named before anything is loaded."""

import inspect

import pytest

from slimrank import compress
from slimrank.errors import UsageError
from slimrank.run.arguments import ARGUMENTS

WRONG = {
    "model": 3,
    "recipe": ["svd"],
    "keep": "0.5",
    "size": 2.5e6,
    "bits": "4",
    "speedup": "1.5",
    "tokens": 0.5,
    "samples": 2.5,
    "window": "16",
    "seed": True,
    "filter": "*mlp*",
    "plan": "plan.json",
    "chat": 1,
    "special_tokens": "window",
    "overwrite": None,
    "resume": 0,
    "plan_only": "yes",
    "device": 0,
    "dtype": None,
    "out": 7,
    "memory": "8GB",
    "settings": "keep=1",
}


def test_every_argument_but_those_that_take_anything_has_its_types():
    others = {"settings", "calibration", "announce", "track", "world"}
    assert ARGUMENTS.keys() | others == inspect.signature(compress).parameters.keys()
    assert WRONG.keys() == ARGUMENTS.keys() | {"settings"}


@pytest.mark.parametrize("name", WRONG)
def test_an_argument_of_a_wrong_type_is_named(name):
    with pytest.raises(UsageError, match=rf"^{name} is .*: give ") as error:
        compress(**{"model": "demo"} | {name: WRONG[name]})
    assert "\n" not in str(error.value)
