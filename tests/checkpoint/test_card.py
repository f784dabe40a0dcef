import pytest
import yaml
from huggingface_hub import ModelCard

from slimrank.checkpoint import model_card
from slimrank.checkpoint.card import table


def test_card_says_where_from_how_to_load_and_what_it_costs():
    recipe = "metric: whiten\nkeep: 0.8\n"
    results = {"dense": {"perplexity": 6.5931, "parameters": 260000}, "compressed": {"perplexity": 45.53, "bytes": 7}}
    card = ModelCard(
        model_card(name="me/small", recipe=recipe, results=results, base_model="org/big", license="mit", language="en")
    )
    assert card.text.index("import slimrank") < card.text.index('from_pretrained("me/small")')
    assert "| dense | 6.593 | 260,000 |  |" in card.text and "| compressed | 45.53 |  | 7 |" in card.text
    assert yaml.safe_load(card.text.split("```yaml")[1].split("```")[0]) == {"metric": "whiten", "keep": 0.8}


TAGS = ["slimrank", "compression", "low-rank", "svd"]


def front_matter(card):
    """The YAML between the first two lines of three dashes, which the hub reads."""
    before, header, _ = card.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(header)


def test_the_hub_reads_what_the_model_is_for_and_what_it_was_made_of():
    header = front_matter(
        model_card(name="small", recipe="a: 1", results={}, base_model="org/big", license="mit", language="en")
    )
    assert header == {
        "base_model": "org/big",
        "base_model_relation": "quantized",
        "language": "en",
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": TAGS,
    }


def test_card_of_a_local_model_names_no_base():
    card = model_card(name="small", recipe="a: 1", results={})
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": TAGS,
    }
    assert "What it costs" not in card


@pytest.mark.parametrize("name", ["[x", "a: b", "{{ table }}", "---"])
def test_an_odd_name_leaves_the_header_whole(name):
    card = model_card(name=name, recipe="a: 1", results={})
    assert front_matter(card)["pipeline_tag"] == "text-generation" and f"# {name}\n" in card


def test_table_keeps_the_order_of_rows_and_columns():
    assert table({"b": {"y": 1}, "a": {"x": 0.5}}).splitlines() == [
        "|  | y | x |",
        "| --- | ---: | ---: |",
        "| b | 1 |  |",
        "| a |  | 0.5 |",
    ]
