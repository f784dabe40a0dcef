from types import SimpleNamespace

import pytest

from slimrank.plan import LinearPlan
from slimrank.report.data import (
    CURVES,
    columns,
    expert_columns,
    joined,
    linear_columns,
    root_mean_square,
    shown_alone,
    types_of,
)


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


def mixture_of(experts):
    linears = {
        f"h.0.mlp.experts.{e}.down": LinearPlan(
            block=0, role=f"mlp.experts.{e}.down", form="low_rank", rank=e, shape=(8, 4), parameters=12 * e,
            relative=0.1 * e, expert=e, routed=10 * e,
        )
        for e in range(experts)
    }  # fmt: skip
    return SimpleNamespace(linears=linears)


def test_experts_are_a_row_together_and_a_row_each():
    plan = mixture_of(3)
    together, each = linear_columns(plan), expert_columns(plan)
    assert together["name"] == ["h.0.mlp.experts.*.down"] and together["type"] == ["down"]
    assert together["cell"] == ["~1"] and together["kept"] == [0.375] and together["predicted"] == [0.1291]
    assert each["expert"] == [0, 1, 2] and each["tokens"] == [0, 10, 20] and each["cell"] == ["0", "1", "2"]


def test_of_many_experts_those_of_most_and_fewest_tokens_are_shown_alone():
    few, many = mixture_of(CURVES), mixture_of(CURVES + 1)
    assert shown_alone(few) == set(few.linears)
    assert shown_alone(many) == {"h.0.mlp.experts.0.down", f"h.0.mlp.experts.{CURVES}.down"}


def test_root_mean_square_of_what_is_known():
    assert root_mean_square([3.0, 4.0]) == pytest.approx(12.5**0.5)
    assert root_mean_square([3.0, None]) is None and root_mean_square([]) is None
