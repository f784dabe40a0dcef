"""What refiners of two-factor layers share."""

from collections.abc import Callable, Sequence

from slimrank.errors import UsageError
from slimrank.forms import form_of
from slimrank.forms.base import Form
from slimrank.forms.low_rank import LowRank
from slimrank.run.session import Group, Session
from slimrank.runtime.threads import Job, in_threads, is_small


def low_rank_layers(session: Session, refiner: str) -> dict[str, LowRank]:
    """The model's layers in the form low_rank, by name; those left dense are skipped.

    Raises:
        UsageError: naming the first layer in another form.
    """
    layers = {}
    for name in session.dense:
        module = session.decoder.model.get_submodule(name)
        if isinstance(module, LowRank):
            layers[name] = module
        elif isinstance(module, Form):
            raise UsageError(f"{name} is {module.form} and refine.{refiner} needs form low_rank: change one of them.")
    return layers


def dealt_layers(
    session: Session, groups: Sequence[Group], make: Callable[[Group], Job[Sequence[Form]]]
) -> dict[str, Form]:
    """The new layers of some groups, each made by the process that it is dealt to, and the same in all.

    make: gives what makes a group's, which may run beside others'. They are to be linked (see forms.link) once they
    are in the model.
    """
    world, mine = session.world, dict[str, Form]()
    with world.apart():
        dealt = world.dealt(groups, [session.work(group) for group in groups])
        jobs = ((is_small(session.shape(group), session.decoder.device), make(group)) for group in dealt)
        for group, made in zip(dealt, in_threads(jobs), strict=True):
            mine |= zip(group, made, strict=True)
    if world.size == 1:
        return mine
    layers = {}
    for name, entry in world.gathered({name: layer.entry() for name, layer in mine.items()}).items():
        layers[name] = mine[name] if name in mine else form_of(name, entry).shell(session.dense[name], entry)
        for tensor in layers[name].state_dict().values():
            world.add_up(tensor if name in mine else tensor.zero_())
    return layers
