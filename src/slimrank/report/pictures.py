"""Pictures of a comparison, drawn with matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimrank.compare import Row
from slimrank.errors import UsageError
from slimrank.plan import Plan


def perplexity_picture(rows: Sequence[Row], path: Path) -> None:
    """Perplexity against keep, a panel per text and a line per recipe; the dense model is the dashed line."""
    plt = _pyplot()
    dense, others = rows[0], rows[1:]
    figure, axes = plt.subplots(1, len(dense.texts), figsize=(7 * len(dense.texts), 5), squeeze=False)
    for axis, text in zip(axes[0], dense.texts, strict=True):
        for recipe in dict.fromkeys(row.recipe for row in others):
            points = sorted((row.keep, row.texts[text].perplexity) for row in others if row.recipe == recipe)
            axis.plot(*zip(*points, strict=True), marker="o", label=recipe)
        axis.axhline(dense.texts[text].perplexity, linestyle="--", color="black", label="dense")
        axis.set(
            xlabel="share of the linears' parameters kept", ylabel="perplexity", yscale="log", title=Path(text).name
        )
    axes[0][-1].legend(fontsize="small")
    _save(figure, path)


def ranks_picture(rows: Sequence[Row], path: Path) -> None:
    """The share of parameters kept, per block and role: a heat map for each recipe and keep."""
    plt = _pyplot()
    plans = [(f"{row.recipe} {row.keep:g}", row.plan) for row in rows if row.plan]
    keeps = len({row.keep for row in rows if row.plan})
    height = math.ceil(len(plans) / keeps)
    figure, axes = plt.subplots(height, keeps, figsize=(4 * keeps, 2.8 * height), squeeze=False)
    for axis, (title, plan) in zip(axes.flat, plans, strict=False):
        roles, shares = shares_kept(plan)
        image = axis.imshow(shares, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axis.set_title(title, fontsize="small")
        axis.set_xticks(range(len(roles)), [role.rpartition(".")[2] for role in roles], rotation=45, fontsize=6)
        axis.set_ylabel("block", fontsize="small")
    figure.colorbar(image, ax=axes, shrink=0.6, label="share kept")
    _save(figure, path)


def shares_kept(plan: Plan) -> tuple[list[str], list[list[float]]]:
    """The roles, and per block the share of parameters that each role keeps (NaN where a block lacks it)."""
    blocks = plan.blocks()
    roles = list(dict.fromkeys(role for linears in blocks.values() for role in linears))
    shares = [
        [b[role].parameters / math.prod(b[role].shape) if role in b else math.nan for role in roles]
        for b in blocks.values()
    ]
    return roles, shares


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    _pyplot().close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("Pictures need matplotlib: pip install 'slimrank[plots]', or leave out --out.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
