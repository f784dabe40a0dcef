"""Temperature: a model whose states became noisy is too sure of itself, and one number corrects that."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from slimrank.calibrate.stream import Part, Stream, final_states
from slimrank.model.decoder import Decoder, attached
from slimrank.numerics.losses import scaled_divergences
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.divergences import logits_of, mean_divergences
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run

# Above 1 the compressed model would learn how sure the dense one is of text that it knows by heart.
FACTORS = tuple(step / 10 for step in range(1, 11))


class Temperature(Refiner):
    """Scales what the head reads by the factor, at most 1, of the least KL(dense || compressed) on held-out windows.

    The factor goes into the gain, and the bias, of the last norm: the model stores and computes nothing more. Where
    the logits follow it in proportion, as without a bias or a soft cap, the head is multiplied with once.
    """

    name: Literal["temperature"] = "temperature"
    whole_model: ClassVar[bool] = False

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Notes the factor; leaves a model without a norm before its head as it is."""
        facts = run.finished(None)
        if facts is None:
            with spectra.model.decoder.weights.hold(None):
                facts = {"temperature": self._fit(spectra)}
                run.finish(None, facts)
        factor = facts["temperature"]
        if factor is None:
            return ["No norm stands before the head, so its temperature stays."]
        return [f"Temperature: what the head reads is scaled by {factor:.3f}."]

    def _fit(self, spectra: Spectra) -> float | None:
        """Scale the norm; returns the factor."""
        decoder, held_out = spectra.model.decoder, spectra.evidence.windows.held_out
        with spectra.model.as_dense():
            dense = final_states(decoder, held_out)
        ours = final_states(decoder, held_out)
        norm = final_norm(decoder, ours)
        if norm is None:
            return None
        gain = Gain(norm, ours.hidden[0].to(decoder.device))
        factor = lowest(FACTORS, divergences(gain, dense, ours))
        gain.scale(factor)
        return factor


def final_norm(decoder: Decoder, states: Stream) -> nn.Module | None:
    """The last module with a vector for its weight that runs in the head."""
    seen: list[nn.Module] = []
    norms = [m for m in decoder.model.modules() if isinstance(w := getattr(m, "weight", None), Tensor) and w.ndim == 1]
    hooks = (norm.register_forward_hook(lambda module, *_: seen.append(module)) for norm in norms)
    with attached(hooks), torch.no_grad():
        decoder.head(states.ids[0][:1], states.hidden[0][:1].to(decoder.device))
    return seen[-1] if seen else None


def divergences(gain: "Gain", dense: Stream, ours: Stream) -> list[float]:
    """KL(dense || ours) in nats a token for each of FACTORS; the model ends with a factor of 1."""

    def scaled(factor: float, batch: int, part: Part) -> Tensor:
        gain.scale(factor)
        return logits_of(ours, batch, part)

    def each(batch: int, part: Part, target: Tensor) -> list[float]:
        if follows:
            return scaled_divergences(logits_of(ours, batch, part), target, FACTORS).tolist()
        return [scaled_divergences(scaled(factor, batch, part), target, [1.0]).item() for factor in FACTORS]

    few = slice(0, 1), slice(0, 8)
    follows = torch.allclose(scaled(0.5, 0, few), 0.5 * scaled(1.0, 0, few), rtol=1e-3, atol=1e-3)
    found = mean_divergences(dense, each)
    gain.scale(1.0)
    return found


def lowest(places: tuple[float, ...], values: list[float]) -> float:
    """Where the parabola through the least of evenly spaced values and its neighbours is lowest."""
    best = min(range(len(values)), key=values.__getitem__)
    if best in (0, len(values) - 1):
        return places[best]
    before, at, after = values[best - 1 : best + 2]
    return places[best] + 0.5 * (places[1] - places[0]) * (before - after) / (before - 2 * at + after)


class Gain:
    """A norm whose output is (weight + c) x' + bias, with c = 0 in most and 1 in some; x (..., d) is to find c by."""

    def __init__(self, norm: nn.Module, x: Tensor) -> None:
        self._parameters = dict(norm.named_parameters())
        self._kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.constant = 0.0
        self.scale(0.0)
        at_zero = norm(x).detach()
        self._set(weight=torch.ones_like(self._kept["weight"]))
        unit = norm(x).detach() - at_zero
        self.constant = ((at_zero * unit).sum() / unit.square().sum()).item()
        self.scale(1.0)

    def scale(self, factor: float) -> None:
        """Let the output be `factor` times the first one."""
        scaled = {name: factor * value for name, value in self._kept.items()}
        self._set(**scaled | {"weight": (self._kept["weight"] + self.constant) * factor - self.constant})

    @torch.no_grad()
    def _set(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)
