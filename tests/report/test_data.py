from types import SimpleNamespace

import pytest

from slimrank.plan import LinearPlan
from slimrank.report.data import columns, joined, linear_columns, root_mean_square, types_of


def plan_of(*roles):
    linears = {
        f"h.{block}.{role}": LinearPlan(
            block=block, role=role, form="low_rank", rank=2 + block, shape=(8, 4), parameters=24, relative=0.123456
        )
        for block in range(2)
        for role in roles
    }
    return SimpleNamespace(linears=linears)


def test_types_are_the_shortest_endings_that_tell_roles_apart():
    roles = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert list(types_of(plan_of(*roles)).values()) == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    assert types_of(plan_of("proj", "mlp.proj", "q_proj")) == {
        "proj": "proj",
        "mlp.proj": "mlp.proj",
        "q_proj": "q_proj",
    }


def test_columns_of_the_linears():
    made = linear_columns(plan_of("a.q", "a.k"), run="one")
    assert made["block"] == [0, 0, 1, 1] and made["type"] == ["q", "k"] * 2 and made["cell"] == ["2", "2", "3", "3"]
    assert made["kept"] == [0.75] * 4 and made["predicted"] == [0.1235] * 4 and made["run"] == ["one"] * 4
    assert joined([made, made])["block"] == made["block"] * 2 and columns([]) == {} == joined([])


def test_root_mean_square_of_what_is_known():
    assert root_mean_square([3.0, 4.0]) == pytest.approx(12.5**0.5)
    assert root_mean_square([3.0, None]) is None and root_mean_square([]) is None
