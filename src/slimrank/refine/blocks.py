"""Block refinement: each block in turn learns to give the dense block's output from the compressed model's states."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.calibrate.stream import Stream, default_batch
from slimrank.model.decoder import Decoder
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.training import Best, Descent, default_lr, trainable, training
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run


class Blocks(Refiner):
    """Per block, `passes` over the calibration windows: descent on factors, norms and biases against the dense output.

    The loss is the squared error over the dense output's variance, channel by channel; lr: 0.256 / width by default;
    the state at the best held-out loss stays.
    """

    name: Literal["blocks"] = "blocks"
    trains: ClassVar[bool] = True
    whole_model: ClassVar[bool] = False

    passes: Annotated[int, Field(ge=1)] = 4
    lr: Annotated[float, Field(gt=0)] | None = None

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Walk dense and compressed hidden states through the blocks together, refining each before it is passed."""
        model, decoder, windows = spectra.model, spectra.model.decoder, spectra.evidence.windows
        batch = default_batch(decoder, windows.calibration.shape[1])
        sets = (windows.calibration, windows.held_out)
        dense, ours = ([Stream(decoder, ids, batch, copies=2) for ids in sets] for _ in range(2))
        ratios = []
        for index in run.track(range(len(decoder)), "refining", len(decoder)):
            with model.as_dense(model.blocks[index]):
                for stream in dense:
                    stream.skip(1)
            facts = run.finished(index)
            if facts is None:
                with decoder.weights.hold(index):
                    before, after = self._refine_block(decoder, index, ours, [stream.hidden for stream in dense])
                facts = {"ratio": after / before if before else 1.0}
                run.finish(index, facts)
            ratios.append(facts["ratio"])
            for stream in ours:
                stream.skip(1)
        ratio = sum(ratios) / len(ratios)
        return [f"Block refinement took the blocks' held-out errors to {ratio:.1%} of what they were, on average."]

    def _refine_block(
        self, decoder: Decoder, index: int, streams: list[Stream], targets: list[list[Tensor]]
    ) -> tuple[float, float]:
        """The block's held-out loss before and after."""
        block, (calibration, held_out) = decoder.blocks[index], streams
        scale = variance(targets[0]).to(decoder.device).clamp_min(1e-8)
        before = self._held_out(held_out, targets[1], scale)
        if not before:
            return before, before
        parameters = trainable([block])
        steps = self.passes * len(calibration.hidden)
        descent = Descent(parameters, lr=self.lr or default_lr(decoder.width), steps=steps, what=self.name)
        best = Best(parameters, before)
        for number in range(self.passes):
            for hidden, calls, target in zip(calibration.hidden, calibration.calls, targets[0], strict=True):
                with training(parameters, decoder.model):
                    output = decoder.run(index, hidden, calls[index])
                    descent.step([loss(output, target, scale)])
            best.offer(self._held_out(held_out, targets[1], scale), number + 1)
        best.restore()
        return before, best.loss

    def _held_out(self, stream: Stream, targets: list[Tensor], scale: Tensor) -> float:
        losses = [loss(output, target, scale).item() for output, target in zip(stream.outputs(), targets, strict=True)]
        return sum(losses) / len(losses)


def loss(output: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """The mean squared error, each channel over its variance `scale` (d,)."""
    return ((output.float() - target.to(output.device).float()).square() / scale).mean()


def variance(batches: list[Tensor]) -> Tensor:
    """Of every channel (d,) over the tokens of all batches (batch, tokens, d), a batch at a time."""
    tokens = sum(batch[..., 0].numel() for batch in batches)
    mean = torch.stack([batch.double().sum((0, 1)) for batch in batches]).sum(0) / tokens
    squares = torch.stack([(batch.double() - mean).square().sum((0, 1)) for batch in batches]).sum(0)
    return (squares / (tokens - 1)).float()
