"""Draw README's picture, nats lost at a share of 0.8 by recipe and text, from a JSON file of benchmarks/results.

    python benchmarks/picture.py --out docs/nats-lost.svg

Recipes that lose more than 5 nats are left out and named below the title, since their bars would flatten all others.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import rows as rows_of
from real import CHEAP_FIRST

from slimrank.report.charts import altair

FILE = Path(__file__).parent / "results" / "real-smollm2.json"
NAMES = {"wiki.test.tokens": "WikiText-2, calibrated on it", "c4.second.jsonl": "C4, a web text"}
FAR = 5.0  # nats


def bars(rows: list[dict[str, Any]], keep: float) -> tuple[list[dict[str, Any]], list[str]]:
    """A bar for each recipe as it ships and text, means over seeds, and what is said of recipes that are left out."""
    mine = [row for row in rows if row["keep"] == keep and "texts" in row and not row.get("settings")]
    order = {name: place for place, name in enumerate(CHEAP_FIRST)}
    found, out = [], []
    for name in sorted({row["recipe"] for row in mine}, key=lambda name: order.get(name, len(order))):
        own = [row["texts"] for row in mine if row["recipe"] == name]
        means = {NAMES.get(text, text): mean(texts[text]["nats_lost"] for texts in own) for text in own[0]}
        if max(means.values()) > FAR:
            out.append(f"{name} loses {' and '.join(f'{lost:.1f}' for lost in means.values())} nats and is left out.")
            continue
        found += [{"recipe": name, "text": text, "nats lost": round(lost, 2)} for text, lost in means.items()]
    return found, out


def drawn(found: list[dict[str, Any]], out: list[str], keep: float) -> str:
    """The picture as SVG, on a ground of its own, so that it reads on a dark page as well."""
    alt = altair()
    import vl_convert

    title = alt.TitleParams(
        "Nats lost for each token of SmolLM2-135M, less is better",
        subtitle=[f"{keep:.0%} of the parameters in the blocks' linears kept", *out],
        anchor="start",
    )
    recipes, texts = (list(dict.fromkeys(bar[key] for bar in found)) for key in ("recipe", "text"))
    base = alt.Chart(alt.Data(values=found)).encode(
        y=alt.Y("recipe:N", sort=recipes, title=None, axis=alt.Axis(ticks=False, domain=False, labelFontSize=13)),
        yOffset=alt.YOffset("text:N", sort=texts),
        x=alt.X("nats lost:Q", title="nats lost for each token", axis=alt.Axis(grid=True, tickCount=6)),
    )
    colours = alt.Scale(domain=texts, range=["#2f6f9f", "#e08a2c"])
    legend = alt.Legend(orient="bottom", title=None, labelFontSize=13, columns=1)  # viewers have fonts of other widths
    marks = base.mark_bar().encode(color=alt.Color("text:N", scale=colours, legend=legend))
    numbers = base.mark_text(align="left", dx=4, fontSize=12).encode(text=alt.Text("nats lost:Q", format=".2f"))
    chart = alt.layer(marks, numbers).properties(title=title, width=520, height=46 * len(recipes), background="white")
    chart = chart.properties(padding={"left": 24, "right": 16, "top": 8, "bottom": 8})
    return vl_convert.vegalite_to_svg(chart.configure_view(stroke=None).to_json())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=FILE, help="a file of benchmarks/real.py")
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with rows_of.one_sentence():
        rows, _ = rows_of.read(options.rows)
        options.out.write_text(drawn(*bars(rows, options.keep), options.keep) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
