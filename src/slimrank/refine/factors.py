"""What refiners of two-factor layers share."""

from slimrank.errors import UsageError
from slimrank.forms.base import Form
from slimrank.forms.low_rank import LowRank
from slimrank.session import Session


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
