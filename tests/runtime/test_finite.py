import math

import pytest

from slimrank import compress
from slimrank.errors import SlimrankError
from slimrank.runtime.finite import require_finite


def test_the_first_number_that_is_not_finite_is_named():
    require_finite({"a": [1.0, 2, None, "nan"], "b": {"c": True}}, "It")
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(SlimrankError, match=rf"^It has {number} at a\.1\.b: what"):
            require_finite({"a": [1.0, {"b": number}]}, "It")


def test_a_plan_with_nan_is_not_written(place):
    plan = compress("dense", "svd", keep=0.5, calibration="text.txt", samples=8, window=32, plan_only=True).plan
    name = next(iter(plan.linears))
    plan.linears[name].relative = math.nan
    with pytest.raises(SlimrankError, match=rf"^The plan has nan at linears\.{name}\.relative:"):
        plan.to_json()
