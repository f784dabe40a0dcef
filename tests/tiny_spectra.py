"""Spectra of a tiny model, for tests of what comes after."""

from typing import Any

import torch
from transformers import PreTrainedModel

from slimrank.allocate import Problem
from slimrank.calibrate import Windows
from slimrank.calibrate.evidence import calibrate
from slimrank.calibrate.needs import Needs
from slimrank.factorize import Factorizer
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.metric import Metric
from slimrank.metric.whitened import Whitened
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.spectrum.decompose import decompose
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run


def windows(vocabulary: int, count: int = 12, tokens: int = 32, seed: int = 1) -> Windows:
    """Random token ids: `count` calibration windows and 4 held-out ones."""
    ids = torch.randint(0, vocabulary, (count + 4, tokens), generator=torch.Generator().manual_seed(seed))
    return Windows(ids[:count], ids[count:], {"seed": seed})


def spectra(
    model: PreTrainedModel, metric: Metric | None = None, needs: Needs | None = None, **options: Any
) -> Spectra:
    """Calibrated and decomposed; needs: beside the metric's; options: of decompose."""
    metric = metric or Whitened()
    compressible = Compressible(Decoder(model))
    evidence = calibrate(compressible, windows(model.config.vocab_size), metric.needs | (needs or Needs()))
    return decompose(compressible, evidence, metric, measured_later=True, **options)


def problem(made: Spectra, keep: float = 0.6, form: Factorizer | None = None, run: Run | None = None) -> Problem:
    """What an allocator gets."""
    return Problem(keep, form or LowRankFactorizer(), made, run or Run())
