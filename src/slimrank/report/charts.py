"""The charts, as Vega-Lite specifications over named columns (see data.py) that the page brings."""

from collections.abc import Sequence
from typing import Any

from slimrank.errors import MissingLibrary
from slimrank.report.data import Columns

Spec = dict[str, Any]


def altair() -> Any:
    """The library, where it is installed."""
    try:
        import altair
        import vl_convert  # noqa: F401  (its bundle runs the charts in the page)
    except ImportError as error:
        raise MissingLibrary(
            "The report needs altair and vl-convert-python: pip install 'slimrank[report]'."
        ) from error
    return altair


def heat_map(
    field: str, title: str, columns: Columns, *, largest: float | None = None, runs: Sequence[str] = ()
) -> Spec:
    """`field` of every linear by block and type, its rank written in; `runs` are chosen from a list.

    columns: those of the linears, for the size; largest: the colours' end, the largest value by default.
    """
    alt = altair()
    top = largest or max(columns[field]) or 1
    axis = alt.Axis(orient="top", labelAngle=-45, domain=False, ticks=False)
    base = alt.Chart(alt.NamedData("linears")).encode(
        x=alt.X("type:N", sort=None, title=None, axis=axis),
        y=alt.Y("block:O", title="block", axis=alt.Axis(domain=False, ticks=False)),
        tooltip=_linear_tooltip(alt, columns),
    )
    scale = alt.Scale(domain=[0, top], scheme="viridis")
    legend = alt.Legend(orient="bottom", title=title, direction="horizontal", gradientLength=180, titleLimit=300)
    cells = base.mark_rect(stroke="white").encode(color=alt.Color(f"{field}:Q", scale=scale, legend=legend))
    bright = alt.condition(f"datum['{field}'] > {0.6 * top}", alt.value("black"), alt.value("white"))
    ranks = base.mark_text(fontSize=10).encode(text="cell:N", color=bright)
    return _finished(_chosen(alt, alt.layer(cells, ranks), "run", runs), height=22 * len(set(columns["block"])))


def expert_map(field: str, title: str, columns: Columns, shown: str, types: Sequence[str]) -> Spec:
    """`field` of every matrix of a mixture's experts by block and expert, `shown` written in where there is room.

    columns: those of the experts; types: of matrices, chosen from a list where there are several.
    """
    alt = altair()
    experts, top = len(set(columns["expert"])), max(columns[field]) or 1
    axis = alt.Axis(orient="top", domain=False, ticks=False, labelAngle=0, labelOverlap=True, labelSeparation=4)
    base = alt.Chart(alt.NamedData("experts")).encode(
        x=alt.X("expert:O", title="expert", axis=axis),
        y=alt.Y("block:O", title="block", axis=alt.Axis(domain=False, ticks=False)),
        tooltip=_linear_tooltip(alt, columns),
    )
    scale = alt.Scale(domain=[0, 1 if field == "kept" else top], scheme="viridis")
    legend = alt.Legend(orient="bottom", title=title, direction="horizontal", gradientLength=180, titleLimit=300)
    cells = base.mark_rect(stroke="white").encode(color=alt.Color(f"{field}:Q", scale=scale, legend=legend))
    bright = alt.condition(
        f"datum['{field}'] > {0.6 * (1 if field == 'kept' else top)}", alt.value("black"), alt.value("white")
    )
    widest = max(len(str(value)) for value in columns[shown])
    room = alt.expr(f"width > {experts * (7 * widest + 4)} ? 1 : 0")
    text = base.mark_text(fontSize=10, opacity=room).encode(text=f"{shown}:N", color=bright)
    both = alt.layer(cells, text)
    return _finished(_chosen(alt, both, "type", types), height=22 * len(set(columns["block"])))


def spectra(types: Sequence[str]) -> Spec:
    """Every block's spectrum for one type of linear, the cut marked; what is shown is chosen."""
    alt = altair()
    measures = ["singular value", "error after a cut here"]
    measure = alt.param(name="measure", value=measures[0], bind=alt.binding_radio(options=measures, name="Show "))
    legend = alt.Legend(orient="bottom", title="block", direction="horizontal", tickMinStep=1)
    base = (
        alt.Chart(alt.NamedData("curves"))
        .transform_calculate(shown=f"measure == '{measures[0]}' ? datum.singular : datum.error")
        .transform_filter("datum.shown > 1e-7")
        .encode(
            x=alt.X("rank:Q", title="rank", scale=alt.Scale(nice=False)),
            y=alt.Y("shown:Q", title="share of the largest", scale=alt.Scale(type="log"), axis=alt.Axis(format=".1~e")),
            color=alt.Color("block:Q", scale=alt.Scale(scheme="viridis"), legend=legend),
            detail="line:N",
            tooltip=["block:O", "rank:Q", alt.Tooltip("singular:Q"), alt.Tooltip("error:Q")],
        )
    )
    cut = base.transform_filter("datum.cut").mark_point(filled=True, size=70, opacity=1, stroke="black", strokeWidth=1)
    both = alt.layer(base.mark_line(strokeWidth=1.5), cut).add_params(measure)
    return _finished(_chosen(alt, both, "type", types), height=320)


def agreement(columns: Columns, runs: Sequence[str] = ()) -> Spec:
    """The error measured on held-out windows against the predicted one, a point a linear, and where they are equal."""
    alt = altair()
    scale = alt.Scale(type="log", nice=False, padding=12)
    both = alt.Chart(alt.NamedData("linears")).transform_filter("datum.measured > 0 && datum.predicted > 0")
    x = alt.X("predicted:Q", title="predicted error", scale=scale, axis=alt.Axis(format="~g"))
    equal = both.mark_line(color="#999", strokeDash=[4, 4]).encode(x=x, y=alt.Y("predicted:Q"))
    points = both.mark_point(filled=True, size=60, opacity=0.8).encode(
        x=x,
        y=alt.Y("measured:Q", title="measured error", scale=scale, axis=alt.Axis(format="~g")),
        color=alt.Color("type:N", sort=None, legend=alt.Legend(orient="bottom", title=None, columns=3)),
        tooltip=_linear_tooltip(alt, columns),
    )
    return _finished(_chosen(alt, alt.layer(equal, points), "run", runs), height=320)


def budgets(data: str, field: str, title: str, chosen: float, loss: float) -> Spec:
    """Predicted nats against what was spent, a `field` of the `data`, as a line; and the plan's own of both."""
    alt = altair()
    curve = alt.Chart(alt.NamedData(data)).transform_filter("datum.nats > 0")
    x = alt.X(f"{field}:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=10))
    y = alt.Y("nats:Q", title="predicted nats a token", scale=alt.Scale(type="log", nice=False, padding=10))
    line = curve.mark_line(point=True, color="#31688e").encode(x=x, y=y, tooltip=[f"{field}:Q", "nats:Q"])
    own = alt.Chart(alt.InlineData(values=[{field: chosen, "nats": loss}]))
    point = own.mark_point(filled=True, size=120, color="black", shape="diamond").encode(x=f"{field}:Q", y="nats:Q")
    return _finished(alt.layer(line, point) if loss > 0 else line, height=320)


def stages(columns: Columns) -> Spec:
    """The seconds of every stage."""
    alt = altair()
    bars = alt.Chart(alt.NamedData("stages")).mark_bar(color="#31688e")
    chart = bars.encode(
        x=alt.X("seconds:Q", title="seconds"),
        y=alt.Y("stage:N", sort=None, title=None),
        tooltip=["stage:N", alt.Tooltip("seconds:Q", format=".2f")],
    )
    return _finished(chart, height=24 * len(columns["stage"]))


def frontier(texts: Sequence[str]) -> Spec:
    """Perplexity against the bytes of the weights, a line a recipe; the dense model is the dashed line."""
    alt = altair()
    picked = alt.selection_point(fields=["recipe"], bind="legend")
    base = alt.Chart(alt.NamedData("measured")).encode(
        x=alt.X("megabytes:Q", title="weights on disk, MB", scale=alt.Scale(zero=False)),
        y=alt.Y("perplexity:Q", title="perplexity", scale=alt.Scale(type="log", nice=False, padding=10)),
        tooltip=[
            "recipe:N",
            "budget:N",
            alt.Tooltip("perplexity:Q", format=".3f"),
            alt.Tooltip("nats:Q", format="+.4f", title="nats lost"),
            alt.Tooltip("megabytes:Q", format=",.2f", title="MB"),
        ],
    )
    others = base.transform_filter("datum.recipe != 'dense'").encode(
        color=alt.Color(
            "recipe:N",
            sort=None,
            scale=alt.Scale(scheme="category10"),
            legend=alt.Legend(orient="bottom", title=None, columns=3),
        ),
        opacity=alt.condition(picked, alt.value(1), alt.value(0.12)),
    )
    dense = base.transform_filter("datum.recipe == 'dense'")
    layers = alt.layer(
        alt.Chart(alt.NamedData("measured"))
        .transform_filter("datum.recipe == 'dense'")
        .mark_rule(strokeDash=[5, 4], color="#555")
        .encode(y="perplexity:Q"),
        dense.mark_point(shape="diamond", filled=True, size=90, color="black"),
        others.mark_line(strokeWidth=2),
        others.mark_point(filled=True, size=70).add_params(picked),
    )
    return _finished(_chosen(alt, layers, "text", texts), height=380)


def _chosen(alt: Any, chart: Any, field: str, options: Sequence[str]) -> Any:
    """Only the rows whose `field` is the one chosen in a list; all where there is no list."""
    if not options:
        return chart
    if len(options) == 1:
        return chart.transform_filter(alt.FieldEqualPredicate(field=field, equal=options[0]))
    bind = alt.binding_select(options=list(options), name=f"{field} ")
    return chart.transform_filter(f"datum.{field} == chosen").add_params(
        alt.param(name="chosen", value=options[0], bind=bind)
    )


def _linear_tooltip(alt: Any, columns: Columns) -> list[Any]:
    kinds = {"name": "N", "block": "O", "type": "N", "form": "N", "shape": "N", "cell": "N"}
    shown = "name", "block", "type", "form", "shape", "cell", "bits", "bytes", "kept", "predicted", "measured", "tokens"
    titles = {"cell": "rank"}
    return [
        alt.Tooltip(f"{field}:{kinds.get(field, 'Q')}", title=titles.get(field, field))
        for field in shown
        if field in columns
    ]


def _finished(chart: Any, height: int) -> Spec:
    sized = chart.properties(width="container", height=height, autosize={"type": "fit-x", "contains": "padding"})
    spec: Spec = sized.configure_view(stroke=None).configure_axis(gridColor="#eee").to_dict()
    return spec
