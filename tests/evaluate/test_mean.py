import math

import numpy as np
import pytest

from slimrank.evaluate import Mean


def test_the_error_is_the_standard_deviations_share():
    values = np.random.default_rng(0).normal(size=20)
    found = Mean.of(values.tolist())
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(20), rel=1e-12)


def test_one_value_tells_no_error():
    assert Mean.of([2.0]) == (2.0, None) and Mean.of([2.0]).told(2) == "2.00"
    assert math.isnan(Mean.of([]).value)


def test_nothing_is_not_less_than_nothing():
    assert Mean(-1e-9, 1e-9).told(4) == "0.0000 ± 0.0000" and Mean(0.25, 0.5).told(2, "+") == "+0.25 ± 0.50"
