"""What recipes lose of the mixture of experts that scripts/train_mixture.py trains."""

from pathlib import Path

import pytest

from slimrank import load
from slimrank.calibrate import read_text
from slimrank.recipe import load_recipe
from slimrank.run.compare import compare
from slimrank.texts.reading import Reading

MODEL = Path(__file__).parents[2] / "out" / "mixture" / "model"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not MODEL.is_dir(), reason="python scripts/train_mixture.py makes the model, in half an hour")
@pytest.mark.parametrize("keep", [0.8, 0.6])
def test_slimrank_loses_less_than_a_third_of_what_svd_llm_loses(keep):
    runs = [(load_recipe(name), keep) for name in ("svd-llm", "slimrank")]
    text, reading = read_text("demo", part="evaluation"), Reading(["demo"], 32, 256, 3)
    dense, *found = compare(load(str(MODEL)), runs, [text], reading, max_windows=64, special_tokens="none")
    plain, ours = (row.texts[text.source].lost(dense.texts[text.source]).value for row in found)
    assert plain > 0
    assert ours <= 0.3 * plain
    divergences = [row.texts[text.source].kl.value for row in found]
    assert divergences[1] <= 0.3 * divergences[0]
