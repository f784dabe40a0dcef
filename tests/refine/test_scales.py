from dataclasses import replace

import pytest
import torch
from tiny_spectra import spectra, windows

from slimrank.forms.quantized import QuantizedLinear
from slimrank.recipe import load_recipe
from slimrank.refine.distill import Distill, held_out_divergence
from slimrank.refine.scales import Scales, scales_of
from slimrank.refine.training import teacher_of
from slimrank.run.build import cuts_of
from slimrank.run.steps import allocate, refine
from slimrank.store.run import Run

ROUND = ("refine.round.bits=2", "refine.round.group=8", "refine.round.ends=8")


@pytest.fixture
def rounded(tiny_llama):
    """Spectra of a model that has been rounded to 2 bits, its embedding to 8, and the cuts."""

    def more(count, seed):
        return windows(320, count, seed=seed).calibration

    made = spectra(tiny_llama(), load_recipe("gptq", ROUND).metric)
    made = replace(made, evidence=replace(made.evidence, windows=replace(made.evidence.windows, more=more)))
    plan = allocate(made, load_recipe("gptq", ROUND), 1.0)
    refine(made, plan)
    return made, cuts_of(plan, made)


def training(**options):
    return Scales(**{"tokens": 30 * 4 * 32, "batch": 4 * 32, **options})


def test_scales_norms_and_biases_are_trained_and_nothing_else(rounded):
    made, cuts = rounded
    model = made.model.decoder.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (note,) = training().refine(made, cuts, Run())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    scales = {f"{name}.scale" for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    norms = {name for name, p in model.named_parameters() if p.ndim == 1}
    assert changed == scales | norms and "model.embed_tokens.table.scale" in scales
    assert "by training of scales on" in note
    assert not any(scale.requires_grad or scale.grad is not None for scale in scales_of(model))


def test_it_brings_the_rounded_model_nearer(rounded):
    made, cuts = rounded
    model, teacher, ids = made.model.decoder.model, teacher_of(made.model), made.evidence.windows.held_out
    before = held_out_divergence(model, teacher, ids)
    (note,) = training(lr=0.01).refine(made, cuts, Run())
    after = held_out_divergence(model, teacher, ids)
    assert after < 0.9 * before and f"{before:.4f} -> {after:.4f}" in note


def test_a_step_moves_a_scale_by_a_share_of_its_matrixs_mean(rounded):
    made, _ = rounded
    decoder = made.model.decoder
    *groups, vectors = training(lr=0.1, vector_lr=0.3).groups(decoder, 1.0)
    assert [group.lr for group in groups] == pytest.approx(
        [0.1 * s.abs().mean().item() for s in scales_of(decoder.model)]
    )
    assert vectors.lr == 0.3 and all(p.ndim == 1 for p in vectors.parameters)


def test_distillation_of_factors_is_refused_where_numbers_are_rounded_and_that_of_scales_is_not():
    recipe = load_recipe("slimrank", ["refine=[{name: round, bits: 4}, {name: scales}]"])
    assert recipe.sized() == recipe and isinstance(recipe.refine[1], Scales) and isinstance(recipe.refine[1], Distill)
