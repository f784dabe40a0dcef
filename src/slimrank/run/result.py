"""The result of compress: the model, its plan and its account, and how they are saved."""

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slimrank.checkpoint import model_card, write_checkpoint
from slimrank.checkpoint.account import FILE as ACCOUNT
from slimrank.checkpoint.account import Account, HeldOut
from slimrank.evaluate import weight_bytes
from slimrank.forms import compressed_layers
from slimrank.model.decoder import Decoder
from slimrank.model.load import Loaded, load
from slimrank.numerics.frequencies import Frequencies
from slimrank.plan import Plan
from slimrank.run.curves import curves_of
from slimrank.run.trial import short_windows, trial_of
from slimrank.runtime.memory import free_memory
from slimrank.runtime.versions import versions
from slimrank.spectrum.curve import Curve

PLAN = "slimrank/plan.json"


@dataclass
class Result:
    """A compressed model in memory with its plan and measurements.

    curves: of every linear by name; parameters: of the whole model, before and after; tokens: of each calibration
    text's windows; held_out: the models' quality, None of a plan alone; place: MODEL that `model` is loaded from, where
    the run had it on disk; resumed: whether it was stopped and went on, `seconds` being those since then.
    """

    loaded: Loaded
    plan: Plan
    curves: Mapping[str, Curve]
    parameters: tuple[int, int]
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: list[Frequencies] = field(default_factory=list)
    held_out: HeldOut | None = None
    place: str | None = None
    resumed: bool = False

    @cached_property
    def model(self) -> PreTrainedModel:
        """The compressed model, in the dtype it was computed in; after a run with `out` it is loaded from there."""
        if self.place is None:
            return self.loaded.model
        dtype = str(self.loaded.model.dtype).removeprefix("torch.")
        device = self.loaded.weights.device if self.loaded.weights else self.loaded.model.device
        return load(self.place, dtype=dtype, device=str(device)).model

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        tensors: Mapping[str, Tensor] | None = None,
        account: Account | None = None,
        trial: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a Hugging Face directory, in the dtype that the dense model is stored in.

        tensors, trial: see write_checkpoint, by default those of the model in memory; account: by default what is
        measured now.
        """
        out = Path(out)
        model = self.model if tensors is None else self.loaded.model
        if tensors is None and trial is None:
            trial = trial_of(Decoder(model), short_windows(self.loaded), free_memory())
        write_checkpoint(
            model,
            out,
            layers=compressed_layers(model),
            dtype=self.loaded.dtype,
            source=self.loaded.files,
            tokenizer=self.loaded.tokenizer,
            extras={
                PLAN: self.plan.to_json(),
                ACCOUNT: (account or self.account()).to_json(),
                "README.md": self.card(out.name),
            },
            overwrite=overwrite,
            tensors=tensors,
            trial=trial,
        )

    def account(self) -> Account:
        """Sizes, seconds, memory, versions and curves of the run; a hub model's bytes follow from its stored dtype."""
        loaded, (before, after) = self.loaded, self.parameters
        size, directory = loaded.dtype.itemsize, loaded.directory
        return Account(
            model=loaded.name,
            device=str(loaded.weights.device if loaded.weights else loaded.model.device),
            computed=str(loaded.model.dtype).removeprefix("torch."),
            stored=str(loaded.dtype).removeprefix("torch."),
            parameters={"dense": before, "compressed": after},
            dense_bytes=weight_bytes(directory) if directory else before * size,
            seconds=self.seconds,
            memory=peak_memory(),
            resumed=self.resumed,
            versions=versions(),
            held_out=self.held_out,
            calibration=self.tokens,
            curves=curves_of(self.curves, {name: linear.own_rank for name, linear in self.plan.linears.items()}),
        )

    def card(self, name: str) -> str:
        """The model card."""
        return card(name, self.plan, self.parameters, self.loaded.hub, self.held_out)

    def summary(self) -> dict[str, str]:
        """Recipe, parameters and calibration as text by label."""
        budget, (before, after) = self.plan.budget, self.parameters
        quality = {"quality": self.held_out.sentence()} if self.held_out else {}
        quality |= {"speed": self.plan.time.sentence()} if self.plan.time else {}
        return quality | {
            "recipe": self.plan.recipe.name,
            "linears": f"{budget.used:,} of {budget.dense:,} parameters ({budget.used / budget.dense:.1%})",
            "whole model": f"{after:,} of {before:,} parameters ({after / before:.1%})",
            "calibration": ", ".join(
                f"{key} {_short(value)}" for key, value in self.plan.calibration.items() if key != "texts"
            ),
        }


def card(
    name: str, plan: Plan, parameters: tuple[int, int], hub: str | None = None, held_out: HeldOut | None = None
) -> str:
    """The model card; parameters: of the whole model, before and after; hub: the dense model's id there."""
    budget, (before, after) = plan.budget, parameters
    rows: dict[str, dict[str, float]] = {
        "dense": {"parameters of the linears": budget.dense, "of the model": before},
        "compressed": {"parameters of the linears": budget.used, "of the model": after},
    }
    if plan.time:
        speed = f"predicted speed of {plan.time.call} on {plan.time.machine}"
        rows["dense"][speed], rows["compressed"][speed] = 1.0, plan.time.speedup
    if held_out:
        words = "perplexity on held-out calibration text", "KL from dense, nats a token"
        rows["dense"] = {words[0]: held_out.dense, words[1]: 0.0} | rows["dense"]
        rows["compressed"] = {words[0]: held_out.compressed, words[1]: held_out.divergence} | rows["compressed"]
    return model_card(name=name, recipe=plan.recipe.to_yaml(), results=rows, base_model=hub)


def peak_memory() -> int:
    """The process's peak resident memory in bytes, or the device's where CUDA is used."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_for_people(size: int) -> str:
    """Bytes of `peak_memory` as text; on a CPU they include reclaimable pages of mapped files."""
    return f"{size / 2**20:,.0f} MiB" + ("" if torch.cuda.is_available() else ", mapped files included")


def _short(value: object) -> str:
    """Text of a value: hashes cut to twelve digits, absolute paths to the file's name."""
    text = str(value)
    if len(text) == 64 and text.isalnum():
        return text[:12]
    return ", ".join(part.rpartition("/")[2] if part.startswith("/") else part for part in text.split(", "))
