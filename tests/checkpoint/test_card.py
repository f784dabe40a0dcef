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
    assert card.data.base_model == "org/big" and card.data.license == "mit" and card.data.library_name == "transformers"
    assert "slimrank" in card.data.tags
    assert card.text.index("import slimrank") < card.text.index('from_pretrained("me/small")')
    assert "| dense | 6.593 | 260,000 |  |" in card.text and "| compressed | 45.53 |  | 7 |" in card.text
    assert yaml.safe_load(card.text.split("```yaml")[1].split("```")[0]) == {"metric": "whiten", "keep": 0.8}


def test_card_of_a_local_model_names_no_base():
    card = ModelCard(model_card(name="small", recipe="a: 1", results={}))
    assert card.data.base_model is None and "What it costs" not in card.text


def test_table_keeps_the_order_of_rows_and_columns():
    assert table({"b": {"y": 1}, "a": {"x": 0.5}}).splitlines() == [
        "|  | y | x |",
        "| --- | ---: | ---: |",
        "| b | 1 |  |",
        "| a |  | 0.5 |",
    ]
