"""What a refiner is: a pass over the model after its linears have become factors."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from slimrank.allocate import Ranks
from slimrank.run.session import Session


class Refiner(BaseModel):
    """Base of the refiners; a subclass's fields are its options in a recipe, `name` is its name there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    gradients: ClassVar[bool] = False  # whether it needs OutputMoments
    trains: ClassVar[bool] = False  # whether it descends on a loss, rather than solve for the factors
    whole_model: ClassVar[bool] = True  # whether it needs all blocks in memory, or keeps each by Session.finish

    @property
    def work(self) -> float:
        """Its time in that of one decomposition of every linear, of which only what grows as fast with width counts."""
        return 0.0

    @property
    def rebuilds(self) -> bool:
        """Whether it builds every planned linear's factors from the dense weights, whatever was built before."""
        return False

    def refine(self, session: Session, ranks: Ranks) -> list[str]:
        """Change the model's factors in place, ranks as planned; returns notes for the user, a sentence each."""
        raise NotImplementedError
