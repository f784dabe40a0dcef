"""The row of a comparison, one recipe at one budget, and the JSON of all rows."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from slimrank.evaluate import Perplexity, text_json
from slimrank.plan import Plan
from slimrank.runtime.finite import require_finite

JSON_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One recipe at one keep, or at one size in bytes (keep 1), or the dense model (plan None, keep 1).

    linears, parameters: parameters of the compressed linears and of the whole model; bytes: of the weights in the
    stored dtype; seconds: of this row alone, without loading and evaluating, None if it went on after a kill.
    """

    recipe: str
    keep: float
    texts: dict[str, Perplexity]
    linears: int
    parameters: int
    bytes: int
    seconds: float | None
    plan: Plan | None = None
    size: int | None = None

    @property
    def budget(self) -> str:
        """What it keeps, or may take."""
        return budget_cell(self.keep, self.size)

    def facts(self) -> dict[str, Any]:
        """The whole row as a JSON value."""
        return asdict(replace(self, plan=None)) | {"plan": self.plan and self.plan.model_dump(mode="json")}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Row":
        """The inverse of facts."""
        texts = {text: Perplexity.of(measured) for text, measured in facts["texts"].items()}
        return cls(**facts | {"texts": texts, "plan": facts["plan"] and Plan.model_validate(facts["plan"])})


def budget_cell(keep: float, size: int | None) -> str:
    """What a row keeps, or may take, as a cell of a table."""
    return f"{keep:g}" if size is None else f"{size / 1e6:g} MB"


def budget_title(sizes: Iterable[int | None]) -> str:
    """The title of the column of such cells."""
    return "budget" if any(size is not None for size in sizes) else "keep"


def spent(seconds: float | None) -> str:
    """A row's seconds as a cell of a table."""
    return "-" if seconds is None else f"{seconds:.1f}"


def to_json(rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """{"version", "settings", "rows": [{"recipe", "keep", "size", "texts", "nats_lost", "linears", ..., "plan"}]}.

    texts: as in the JSON of evaluate, compared with the first row, the dense model.
    """
    dense, plain = rows[0].texts, []
    for row in rows:
        texts = {text: text_json(measured, dense[text]) for text, measured in row.texts.items()}
        lost = {text: entry["nats_lost"] for text, entry in texts.items()}
        facts = replace(row, texts={}).facts()
        plain.append(facts | {"texts": texts, "nats_lost": lost, "plan": facts["plan"]})
    require_finite(plain, "The comparison")
    return json.dumps({"version": JSON_VERSION, "settings": settings, "rows": plain}, indent=1) + "\n"
