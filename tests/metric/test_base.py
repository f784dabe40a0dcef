from dataclasses import replace

import pytest
from tiny_spectra import spectra

from slimrank.calibrate.needs import Needs
from slimrank.metric import METRICS


@pytest.fixture(scope="module")
def without_inputs(tiny_llama):
    made = spectra(tiny_llama(), needs=Needs(gradients=True, of_weights=True))
    return replace(made, evidence=replace(made.evidence, moments=replace(made.evidence.moments, inputs={})))


@pytest.mark.parametrize("metric", [kind() for kind in METRICS.values()], ids=METRICS)
def test_the_left_gram_of_a_linear_is_told_without_its_inputs(without_inputs, metric):
    for unit in without_inputs.curves:
        found = replace(without_inputs, metric=metric).left(unit)
        if metric.needs.gradients:
            assert found.equal(metric.left(without_inputs.evidence.output_of(unit.leader)))
        else:
            assert found is None
