"""Temperature: truncation makes a model overconfident, which one scale of its logits corrects."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from slimrank.calibrate.needs import Holds, Work
from slimrank.calibrate.stream import CPU_LOGITS, DEVICE_LOGITS, Part, Stream, final_states
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.model.modules import attached
from slimrank.numerics.losses import scaled_divergences
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.divergences import logits_of, mean_divergences
from slimrank.runtime.track import Track
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.windows import Windows

# a factor above 1 would fit the dense model's overconfidence on text that it has memorised
FACTORS = tuple(step / 10 for step in range(1, 11))


class Temperature(Refiner):
    """Scales the head's input by the factor <= 1 with the least KL(dense || compressed) on the held-out windows.

    The factor is multiplied into the last norm's weight and bias, so the model gets no new parameter.
    """

    name: Literal["temperature"] = "temperature"
    whole_model: ClassVar[bool] = False

    def work(self, windows: Windows) -> Work:
        """Both models once on the held-out windows."""
        return Work(windows.held_out.numel(), blocks=2, head=3)

    def holds(self, windows: Windows) -> Holds:
        """The states of both models, with the logits of a part of them."""
        return Holds(windows.held_out.numel(), states=2, logits=(6 * CPU_LOGITS, 6 * DEVICE_LOGITS))

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Scale the last norm; returns a note with the factor, or that there is no norm before the head."""
        facts = run.finished(None)
        if facts is None:
            with spectra.model.decoder.weights.hold(None):
                facts = {"temperature": self._fit(spectra, run.track)}
                run.finish(None, facts)
        factor = facts["temperature"]
        if factor is None:
            return ["Temperature unchanged: the model has no norm before its head."]
        return [f"Temperature: the head's input is scaled by {factor:.3f}."]

    def _fit(self, spectra: Spectra, track: Track) -> float | None:
        """Scale the norm; returns the factor, None without a norm."""
        decoder, held_out = spectra.model.decoder, spectra.evidence.windows.held_out
        with spectra.model.as_dense():
            dense = final_states(decoder, held_out, track, self.name)
        ours = final_states(decoder, held_out, track, self.name)
        norm = final_norm(decoder, ours)
        if norm is None:
            return None
        gain = Gain(norm, ours.hidden[0].to(decoder.device))
        factor = lowest(FACTORS, divergences(spectra.model, gain, dense, ours))
        gain.scale(factor)
        return factor


def final_norm(decoder: Decoder, states: Stream) -> nn.Module | None:
    """The last module run by the head whose weight is a vector; None if there is none."""
    seen: list[nn.Module] = []
    norms = [
        m for m in decoder.model.modules() if isinstance(w := getattr(m, "weight", None), nn.Parameter) and w.ndim == 1
    ]
    hooks = (norm.register_forward_hook(lambda module, *_: seen.append(module)) for norm in norms)
    with attached(hooks), torch.no_grad():
        decoder.head(states.ids[0][:1], states.hidden[0][:1].to(decoder.device))
    return seen[-1] if seen else None


def divergences(model: Compressible, gain: "Gain", dense: Stream, ours: Stream) -> list[float]:
    """KL(dense || ours) in nats per token for each of FACTORS; the gain is 1 afterwards."""

    def scaled(factor: float, batch: int, part: Part) -> Tensor:
        gain.scale(factor)
        return logits_of(ours, batch, part)

    def each(batch: int, part: Part, target: Tensor) -> list[float]:
        if proportional:
            return scaled_divergences(logits_of(ours, batch, part), target, FACTORS).tolist()
        return [scaled_divergences(scaled(factor, batch, part), target, [1.0]).item() for factor in FACTORS]

    few = slice(0, 1), slice(0, 8)
    proportional = torch.allclose(scaled(0.5, 0, few), 0.5 * scaled(1.0, 0, few), rtol=1e-3, atol=1e-3)
    means = mean_divergences(model, dense, each)
    gain.scale(1.0)
    return means


def lowest(places: tuple[float, ...], values: list[float]) -> float:
    """The minimum of the parabola through the least value and its neighbours; `places` are evenly spaced."""
    best = min(range(len(values)), key=values.__getitem__)
    if best in (0, len(values) - 1):
        return places[best]
    before, at, after = values[best - 1 : best + 2]
    return places[best] + 0.5 * (places[1] - places[0]) * (before - after) / (before - 2 * at + after)


class Gain:
    """A norm with output (weight + c) x' + bias, c 0 or 1 in most models; x (..., d): an input that c is found from."""

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
        """Set weight and bias such that the output is `factor` times the original one."""
        scaled = {name: factor * value for name, value in self._kept.items()}
        self._set(**scaled | {"weight": (self._kept["weight"] + self.constant) * factor - self.constant})

    @torch.no_grad()
    def _set(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)
