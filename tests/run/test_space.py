from types import SimpleNamespace

import pytest
import torch
from tiny_spectra import windows

from slimrank.allocate.measure import Damage, holds
from slimrank.calibrate.stream import CPU_LOGITS, default_batch
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.recipe import load_recipe
from slimrank.run import estimate as estimates
from slimrank.run.space import LOGIT, Space, largest, resident

WINDOWS = windows(320)
READ, HELD_OUT = WINDOWS.calibration.numel(), WINDOWS.held_out.numel()


def space(model, *settings, recipe="slimrank", **others):
    return Space(Compressible(Decoder(model)), WINDOWS, load_recipe(recipe, list(settings)), **others)


def bytes_of(model):
    return sum(parameter.nbytes for parameter in model.parameters())


def test_calibration_holds_the_states_of_all_windows_and_the_grams_of_every_input_once(tiny_llama):
    model = tiny_llama()  # width 32, 2 blocks; q, k, v and o are taken for readers of one input, gate and up of another
    decoder, block = Decoder(model), model.model.layers[0]
    inputs = [block.self_attn.q_proj, block.mlp.gate_proj, block.mlp.down_proj]
    outputs = sum(linear.out_features for linear in block.modules() if isinstance(linear, torch.nn.Linear))
    tokens_at_once = default_batch(decoder, 32) * 32
    step = space(model).calibration()
    assert step.weights == bytes_of(block)
    assert step.work == READ * 32 * 4 + tokens_at_once * (outputs + 64) * 4 + sum(8 * i.in_features**2 for i in inputs)


def test_what_damage_says_that_it_holds_is_what_it_holds(tiny_llama, monkeypatch):
    model = tiny_llama()
    monkeypatch.setattr("slimrank.allocate.measure.CPU_LOGITS", 0)
    said = space(model).held(holds(WINDOWS.calibration[:4]))
    spectra = SimpleNamespace(
        evidence=SimpleNamespace(windows=WINDOWS),
        model=Compressible(Decoder(model)),
        held=SimpleNamespace(room=0),
    )
    damage = Damage(spectra, windows=4)
    states = {hidden.data_ptr(): hidden.nbytes for before in damage._hidden for hidden in before}
    assert said == sum(states.values()) + sum(rows.nbytes for rows, _ in damage._dense) + damage._stream.nbytes


def test_who_runs_the_whole_model_needs_it_in_memory_and_who_trains_it_three_times_more(tiny_llama):
    model = tiny_llama()
    size = bytes_of(model)
    (whole,) = (step for step in space(model, recipe="duo-svd").steps() if "allocator" in step.what)
    assert whole.weights == size
    temperature, distill = (step for step in space(model, "refine=[temperature, distill]").measurements())
    assert temperature.work == HELD_OUT * 2 * 32 * 4 + min(LOGIT * CPU_LOGITS, LOGIT * HELD_OUT * model.vocab_size)
    model.to(torch.bfloat16)
    (trained,) = space(model, "refine=[distill]").measurements()
    assert distill.weights == size and trained.weights == size / 2
    states, logits = 8192 * (2 + 3) * 32, 4 * 6 * 8192 * model.vocab_size
    assert distill.work == 3 * size + states * 4 + logits and trained.work == 3 * size + states * 2 + logits


def test_the_check_of_what_was_written_holds_a_second_model_and_maps_its_file(tiny_llama):
    model = tiny_llama()
    linears = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    outside = sum(p.numel() for p in model.parameters()) - linears
    trial = space(model, recipe="svd-llm", keep=0.5, stored=torch.bfloat16).trial(torch.bfloat16)
    assert trial.weights == bytes_of(model) and trial.work == 4 * (outside + linears // 2)
    bases = 2 * 8 * (2 * 32**2 + 2 * 16**2 + 3 * 32**2)  # k and v have 16 rows
    assert trial.pages == bases + 4 * (linears // 2) + 2 * (linears // 2) + 2 * (outside + linears // 2)


def test_the_estimate_is_what_the_process_holds_and_the_largest_step(tiny_llama, monkeypatch):
    model = tiny_llama()
    monkeypatch.setattr(estimates, "resident", lambda: (900, 700))
    recipe = load_recipe("svd-llm")
    said = estimates.estimate(Compressible(Decoder(model)), WINDOWS, recipe, 0.5, torch.bfloat16)
    steps = list(space(model, recipe="svd-llm", keep=0.5, stored=torch.bfloat16).steps())
    most = max(bytes_of(model) + step.work for step in steps)  # all of the model is in memory
    assert said.memory == 700 - bytes_of(model) + most
    assert said.memory + said.pages == 900 - bytes_of(model) + max(
        bytes_of(model) + step.work + step.pages for step in steps
    )
    assert said.largest in {step.what for step in steps}


def test_parts_on_disk_are_in_memory_as_far_as_there_is_room(tiny_llama):
    decoder = Decoder(tiny_llama())
    steps = [SimpleNamespace(what="a", weights=300, work=10, pages=5)]
    decoder.weights.room = 1000
    assert largest(steps, decoder, pages=False) == (1010, "a")
    decoder.weights.room = 100
    assert largest(steps, decoder, pages=True) == (315, "a")


def test_what_is_resident_grows_by_what_is_allocated():
    before = resident()
    ones = torch.ones(2**23)
    after = resident()
    assert after[1] - before[1] == pytest.approx(ones.nbytes, rel=0.2) and after[0] >= after[1]
