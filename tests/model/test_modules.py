import pytest

from slimrank.errors import SlimrankError
from slimrank.model.modules import require_finite_weights


def test_a_weight_that_is_not_finite_is_named(tiny_llama):
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    with pytest.raises(SlimrankError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        require_finite_weights(model)
