"""slimrank recipes: what ships."""

from typing import Annotated

import typer


def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe, with all defaults.")] = None) -> None:
    """List the shipped recipes, or print one.

    Example: slimrank recipes svd-llm > mine.yaml
    """
    from slimrank.cli import console
    from slimrank.recipe import load_recipe, shipped_recipes

    if name:
        typer.echo(load_recipe(name).to_yaml(), nl=False)
        return
    console.totals({name: load_recipe(name).summary for name in shipped_recipes()})
