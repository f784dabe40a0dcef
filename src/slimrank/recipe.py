"""A recipe: the metric, allocator, form, decomposition route and refiners of a run, with their options."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from importlib.resources import files
from operator import or_
from pathlib import Path
from reprlib import repr as shortly
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from slimrank.allocate import ALLOCATORS, Allocator
from slimrank.calibrate.needs import Needs
from slimrank.errors import UsageError, uncapitalized
from slimrank.factorize import FACTORIZERS, Factorizer
from slimrank.metric import METRICS, Metric
from slimrank.refine import REFINERS, Refiner
from slimrank.refine.anchored import Anchored
from slimrank.refine.round import Round
from slimrank.rounding.price import Pricing
from slimrank.spectrum.decomposition import Route

T = TypeVar("T", bound=BaseModel)
Refinement = Literal["none", "distill", "scales"]
TABLES: dict[str, Mapping[str, type[BaseModel]]] = {"metric": METRICS, "allocate": ALLOCATORS, "form": FACTORIZERS}


class Recipe(BaseModel):
    """The choice for each step of the pipeline: a name, or a mapping of `name` and that choice's options.

    experts: whether the inputs of a mixture's experts are those of the tokens routed to each, or all tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str = ""
    source: str = ""
    metric: SerializeAsAny[Metric]
    allocate: SerializeAsAny[Allocator]
    form: SerializeAsAny[Factorizer]
    route: Route = "projector"
    refine: tuple[SerializeAsAny[Refiner], ...] = ()
    experts: Literal["routed", "all"] = "routed"

    @field_validator(*TABLES, mode="before")
    @classmethod
    def _choose_one(cls, value: Any, info: ValidationInfo) -> BaseModel:
        return _chosen(value, str(info.field_name), TABLES[str(info.field_name)])

    @field_validator("refine", mode="before")
    @classmethod
    def _choose_each(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise UsageError("Recipe key refine must be a list of refiners, [] for none.")
        return [_chosen(item, f"refine.{index}", REFINERS) for index, item in enumerate(value)]

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if (self.form.stacks or self.form.shared) and not self.allocate.stacks:
            raise UsageError(
                f"Recipe key form: {self.form.name} may factorise several linears together, which allocate "
                f"{self.allocate.name} cannot choose: set allocate to nats, or leave that option of the form out."
            )
        return self

    @property
    def needs(self) -> Needs:
        """The calibration statistics that any of its steps needs."""
        own = Needs(all_experts=self.experts == "all")
        return reduce(or_, (step.needs for step in self.refine), self.metric.needs | self.allocate.needs | own)

    @property
    def rebuilds(self) -> bool:
        """Whether the first refiner builds all factors from the dense weights, so that factorisation is skipped."""
        return bool(self.refine) and self.refine[0].rebuilds and not self.form.searches

    @property
    def cuts_later(self) -> bool:
        """Whether later steps cut the decompositions, so that their bases are kept with the curves."""
        return self.allocate.measures or not self.rebuilds

    @property
    def pricing(self) -> Pricing | None:
        """What rounding is to be priced for a budget of bytes; None where its refiners don't round."""
        step = next((step for step in self.refine if isinstance(step, Round)), None)
        if step is None:
            return None
        return Pricing(self.allocate.pricing, step.feedback == "both", step.ridge)

    def sized(self) -> "Recipe":
        """The recipe for a budget that rounding helps: its refiner round, where it has none, takes anchored's place.

        Raises:
            UsageError: if its allocator spends parameters alone, or a refiner can't train rounded layers.
        """
        self.require_spending()
        step = next((step for step in self.refine if step.needs_floats), None)
        if step is not None:
            raise UsageError(f"refine.{step.name} can't train rounded layers: leave it out, or give --keep.")
        if any(isinstance(step, Round) for step in self.refine):
            return self
        steps = [
            Round.model_validate({**step.model_dump(), "name": "round"}) if isinstance(step, Anchored) else step
            for step in self.refine
        ]
        if not any(isinstance(step, Round) for step in steps):
            steps = [Round(mix=0.0, shrink=0.0), *steps]
        return self.model_copy(update={"refine": tuple(steps)})

    def require_spending(self) -> None:
        """Raise a UsageError if its allocator can't spend bytes or seconds."""
        if not self.allocate.spends:
            raise UsageError(
                f"The recipe {self.name} allocates by {self.allocate.name}, which spends parameters and chooses no "
                "bits: give --keep instead of --size, --bits or --speedup, or set allocate to nats."
            )

    def refined(self, by: Refinement) -> "Recipe":
        """The recipe with its training refiners replaced by `by`, or removed for `none`."""
        solved = tuple(step for step in self.refine if not step.trains)
        if by == "none":
            return self.model_copy(update={"refine": solved})
        return self.model_copy(
            update={"name": f"{self.name}+{by}", "refine": (*solved, REFINERS[by].model_validate({"name": by}))}
        )

    def to_yaml(self) -> str:
        """The recipe as YAML text that `--recipe` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def shipped_recipes() -> dict[str, Path]:
    """Paths of the recipes that come with the package, by name."""
    folder = Path(str(files("slimrank") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(
    recipe: "str | Path | Recipe", settings: Sequence[str] = (), refine: Refinement | None = None
) -> Recipe:
    """A recipe from a shipped name, a path or a Recipe, with `refine` and then `settings` applied.

    A setting is `key.key=value`; a refiner's key is its name: `refine.distill.tokens=500000`.

    Raises:
        UsageError: for an unknown recipe, key or value, naming it and the valid ones.
    """
    raw = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else _read(recipe)
    if refine:
        raw = _validated(Recipe, raw, "").refined(refine).model_dump(mode="json")
    for setting in settings:
        _apply(raw, setting)
    return _validated(Recipe, raw, "")


def settings_by_recipe(recipes: Sequence[str], settings: Sequence[str]) -> dict[str, list[str]]:
    """Overrides by recipe: `key=value` applies to all recipes, `RECIPE:key=value` to one.

    Raises:
        UsageError: for an override of a recipe that is not in `recipes`.
    """
    overrides: dict[str, list[str]] = {recipe: [] for recipe in recipes}
    for setting in settings:
        recipe, separator, _ = setting.partition("=")[0].rpartition(":")
        if separator and recipe not in overrides:
            raise UsageError(f"--set {setting}: {recipe!r} is none of the recipes {', '.join(recipes)}.")
        for name in [recipe] if separator else overrides:
            overrides[name].append(setting.removeprefix(f"{recipe}:") if separator else setting)
    return overrides


def _chosen(value: Any, key: str, table: Mapping[str, type[BaseModel]]) -> BaseModel:
    """The step that a recipe's value (a name, or a mapping with a name) selects from `table`, with its options."""
    if isinstance(value, BaseModel):
        return value
    options = _options(value)
    name = options.get("name") if isinstance(options, dict) else options
    if not isinstance(options, dict) or not isinstance(name, str) or name not in table:
        raise UsageError(f"Recipe key {key}.name is {shortly(name)}: choose one of {', '.join(table) or 'none yet'}.")
    return _validated(table[name], options, f"{key}.")


def _options(value: Any) -> Any:
    """A bare name as the mapping {"name": value}; any other value unchanged."""
    return {"name": value} if isinstance(value, str) else value


def _read(recipe: str | Path) -> dict[str, Any]:
    shipped = shipped_recipes()
    path = shipped.get(str(recipe), Path(recipe))
    if not path.is_file():
        raise UsageError(f"There is no recipe {str(recipe)!r}: give a YAML file or one of {', '.join(shipped)}.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise UsageError(f"Recipe {path} is not readable YAML ({_one_line(error)}): correct it.") from error
    if not isinstance(raw, dict):
        raise UsageError(f"Recipe {path} must be a mapping of keys such as metric and allocate.")
    return {"name": path.stem} | raw


def _apply(raw: dict[str, Any], setting: str) -> None:
    path, separator, text = setting.partition("=")
    *parents, last = path.split(".")
    if not separator or not last:
        raise UsageError(f"--set {setting!r} must read key=value, such as allocate.beta=0.5.")
    inner: Any = raw
    for key in parents:
        inner = _entered(inner, key, setting)
    if not isinstance(inner, dict):
        raise UsageError(f"--set {setting}: say which option of {last!r}, such as {path}.option=value.")
    try:
        inner[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--set {setting}: the value is not readable ({_one_line(error)}).") from error


def _entered(raw: Any, key: str, setting: str) -> Any:
    """The value at `key` of a mapping, or the item of a list with that name; bare names become mappings in place."""
    if isinstance(raw, list):
        raw[:] = [_options(item) for item in raw]
        inner = {str(item.get("name")): item for item in raw if isinstance(item, dict)}
    else:
        inner = raw
        if key in raw:
            raw[key] = _options(raw[key])
    if not isinstance(inner.get(key), dict | list):
        raise UsageError(f"--set {setting}: the recipe has no key {key!r}{_neighbours(key, inner)}.")
    return inner[key]


def _validated(kind: type[T], raw: Any, prefix: str) -> T:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            key, near = prefix + str(first["loc"][-1]), _neighbours(str(first["loc"][-1]), kind.model_fields)
            raise UsageError(f"Unknown recipe key {key!r}{near}.") from error
        place, fault = _fault(error)
        raise UsageError(f"Recipe key {prefix + place!r}: {fault}, not {shortly(first['input'])}.") from error


def _fault(error: ValidationError) -> tuple[str, str]:
    """The first error's key and what is valid there; for a union of types, what each of them accepts."""
    first, *others = error.errors()
    place, faults = first["loc"], [uncapitalized(first["msg"].removeprefix("Value error, "))]
    if len(place) > 1 and isinstance(place[-1], str):  # pydantic appends the union member
        place = place[:-1]
        faults += [e["msg"].removeprefix("Input should be ") for e in others if e["loc"][:-1] == place]
    return ".".join(map(str, place)), " or ".join(faults)


def _neighbours(key: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(key, known, n=1)
    return (
        f", did you mean {close[0]!r}? The keys there are {', '.join(known)}"
        if close
        else f"; the keys there are {', '.join(known) or 'none'}"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
