"""The model card (README.md) of a compressed model."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ origin }}, compressed by low-rank factorisation with slimrank.

## Load it

```python
import slimrank  # teaches transformers this checkpoint's layers
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{{ name }}")
tokenizer = AutoTokenizer.from_pretrained("{{ name }}")
```

Without `import slimrank` transformers stops at a size mismatch instead of loading.
{% if table %}
## What it costs

{{ table }}
{% endif %}
## Recipe

```yaml
{{ recipe }}
```

The ranks of every layer are in `slimrank/plan.json`.
"""


def model_card(
    *,
    name: str,
    recipe: str,
    results: Mapping[str, Mapping[str, Any]],
    base_model: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
) -> str:
    """The card's Markdown: YAML header, how to load, table of results and the recipe's YAML.

    `results` maps a row's name ("dense", "compressed") to its columns ({"perplexity": 6.59, ...}); `base_model` is the
    dense model's hub id, None for one that isn't on the hub. The hub lists compressed models with the quantized ones,
    the only relation that it has for them.
    """
    data = ModelCardData(
        base_model=base_model,
        base_model_relation="quantized" if base_model else None,
        license=license,
        language=language,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["slimrank", "compression", "low-rank", "svd"],
    )
    origin = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "A causal language model"
    card = ModelCard.from_template(
        data, template_str=_TEMPLATE, name=name, origin=origin, table=table(results), recipe=recipe.strip()
    )
    return str(card)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of `rows`, its columns in order of first appearance."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *columns], ["---"] + ["---:"] * len(columns)]
    lines += [[name, *(_cell(row.get(column, "")) for column in columns)] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
