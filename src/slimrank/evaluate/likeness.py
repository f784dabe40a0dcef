"""How far what a compressed model is evaluated on is from what it was calibrated on."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from slimrank.checkpoint.account import FILE, Account
from slimrank.errors import UsageError
from slimrank.evaluate.perplexity import text_windows
from slimrank.model.load import Loaded
from slimrank.numerics.frequencies import Frequencies
from slimrank.texts.texts import Text
from slimrank.texts.tokens import SpecialTokens

FURTHER = 0.1  # than usual: a text is then called unlike the calibration text


@dataclass(frozen=True)
class Distance:
    """From the nearest calibration text.

    value: the total variation between the frequencies of tokens, 0 to 1; usual: that of as many tokens of the
    calibration text from the rest of it, None where that was a single window.
    """

    value: float
    usual: float | None

    @classmethod
    def of(cls, windows: Tensor, calibration: Sequence[Frequencies]) -> "Distance":
        """Of windows (count, window) ids from where the calibration is least further than usual."""
        tokens = windows.numel()
        return min((cls(one.distance(windows), one.usual_at(tokens)) for one in calibration), key=lambda d: d.further)

    @property
    def further(self) -> float:
        """How much more than usual it is."""
        return self.value - (self.usual or 0.0)

    @property
    def unlike(self) -> bool:
        """Whether a tenth of the tokens more than usual would have to be others."""
        return self.further > FURTHER

    def told(self) -> str:
        """For a table: the distance and the usual one."""
        return f"{self.value:.2f}" + ("" if self.usual is None else f" ({self.usual:.2f})")

    def sentence(self, text: str, model: str) -> str:
        """What follows from a text that is unlike."""
        usual = "" if self.usual is None else f"; as many tokens of that text itself: {self.usual:.2f}"
        return (
            f"{text} is unlike any text that {model} was calibrated on (distance {self.value:.2f}{usual}): expect it "
            "to lose more here than there."
        )


def distances(
    loaded: Loaded, texts: Sequence[Text], *, window: int, max_windows: int | None, special_tokens: SpecialTokens
) -> tuple[dict[str, Distance], list[str]]:
    """How far each text's windows are from the calibration of a checkpoint that compress wrote; none for another.

    And a sentence for each that is unlike it, or why it is not known.
    """
    if loaded.directory is None or not (loaded.directory / FILE).is_file():
        return {}, []
    try:
        tokens = Account.load(loaded.directory).calibration
    except UsageError as error:
        return {}, [f"How far the texts are from the calibration text is not known: {error}"]
    if not tokens:
        return {}, [f"{loaded.name} is of an older version, which did not keep what its calibration text is like."]
    found = {}
    for text in texts:
        ids = text_windows(loaded.tokenizer, text, window, max_windows, special_tokens)
        found[text.source] = Distance.of(ids, tokens)
    return found, [one.sentence(text, loaded.name) for text, one in found.items() if one.unlike]
