"""Layers of the model, as several refiners read and replace them."""

from collections.abc import Callable, Sequence

from slimrank.errors import UsageError
from slimrank.forms import Form, LowRank, form_of
from slimrank.model.compressible import Compressible
from slimrank.model.units import Unit
from slimrank.numerics.threads import Job, in_threads, is_small


def low_rank_layers(model: Compressible, refiner: str) -> dict[str, LowRank]:
    """The model's layers in the form low_rank, by name; those left dense are skipped.

    Raises:
        UsageError: naming the first layer in another form.
    """
    layers = {}
    for name in model.linears:
        module = model.decoder.model.get_submodule(name)
        if isinstance(module, LowRank):
            layers[name] = module
        elif isinstance(module, Form):
            raise UsageError(f"{name} is {module.form} and refine.{refiner} needs form low_rank: change one of them.")
    return layers


def dealt_layers(
    model: Compressible, units: Sequence[Unit], make: Callable[[Unit], Job[Sequence[Form]]]
) -> dict[str, Form]:
    """The new layers of units by name, each made by one process and sent to all.

    make: returns the job that makes a unit's layers; jobs may run in parallel. The caller puts the layers into the
    model and links them (see forms.link).
    """
    world, mine = model.decoder.world, dict[str, Form]()
    with world.apart():
        dealt = world.dealt(units, [unit.work for unit in units])
        jobs = ((is_small(unit.shape, model.decoder.device), make(unit)) for unit in dealt)
        for unit, made in zip(dealt, in_threads(jobs), strict=True):
            mine |= zip(unit.names, made, strict=True)
    if world.size == 1:
        return mine
    layers = {}
    for name, entry in world.gathered({name: layer.entry() for name, layer in mine.items()}).items():
        layers[name] = mine[name] if name in mine else form_of(name, entry, 0).shell(model.linears[name], entry)
        for tensor in layers[name].state_dict().values():
            world.add_up(tensor if name in mine else tensor.zero_())
    return layers
