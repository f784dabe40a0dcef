"""Sessions of a tiny model, as far as the spectra, for tests of what comes after."""

from typing import Any

import torch
from transformers import PreTrainedModel

from slimrank.allocate import Problem
from slimrank.calibrate import Windows
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.metric import Metric
from slimrank.metric.whitened import Whitened
from slimrank.model.decoder import Decoder
from slimrank.run.pipeline import calibrate, decompose_all
from slimrank.run.session import Session


def windows(vocabulary: int, count: int = 12, tokens: int = 32, seed: int = 1) -> Windows:
    """Random token ids: `count` calibration windows and 4 held-out ones."""
    ids = torch.randint(0, vocabulary, (count + 4, tokens), generator=torch.Generator().manual_seed(seed))
    return Windows(ids[:count], ids[count:], {"seed": seed})


def session(model: PreTrainedModel, keep: float = 0.6, metric: Metric | None = None, **options: Any) -> Session:
    """Calibrated (labels="text" adds the gradient pass) and decomposed."""
    metric = metric or Whitened()
    read, decoder = windows(model.config.vocab_size), Decoder(model)
    linears = decoder.linears()
    moments, held_out = calibrate(decoder, read, linears, **options)
    made = Session(decoder, linears, read, metric, LowRankFactorizer(), keep, moments, held_out)
    decompose_all(made)
    return made


def problem(made: Session, keep: float | None = None) -> Problem:
    """What an allocator gets."""
    return Problem(made.keep if keep is None else keep, made.spectrum(), made.form, made)
