import pytest
from tiny_spectra import windows

from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.recipe import load_recipe
from slimrank.run.estimate import estimate
from slimrank.run.pace import Pace

WINDOWS = windows(320)
READ, HELD_OUT = WINDOWS.calibration.numel(), WINDOWS.held_out.numel()


def expected(model, refine="", **settings):
    given = [f"{key}={value}" for key, value in settings.items()]
    recipe = load_recipe("slimrank", ["form=pivoted", f"refine=[{refine}]", *given])
    return estimate(Compressible(Decoder(model)), WINDOWS, recipe)


def paced(monkeypatch, **pace):
    """A machine that takes nothing but what is given."""
    given = {"block": 0.0, "head": 0.0, "product": 0.0, "eigen": 0.0} | pace
    monkeypatch.setattr("slimrank.run.estimate.Pace.of", lambda model, ids: Pace(**given))


def test_decompositions_are_in_the_time(tiny_llama, monkeypatch):
    paced(monkeypatch, eigen=1.0)
    model = tiny_llama()
    once = sum(min(linear.weight.shape) ** 3 for block in Decoder(model).linears() for linear in block.values())
    assert expected(model).seconds == pytest.approx(2 * once)  # the curves and the factors
    assert expected(model, "temperature").seconds == pytest.approx(2 * once)
    assert expected(model, "anchored, temperature").seconds == pytest.approx(2 * once)  # it builds the factors itself


def test_passes_of_the_blocks_and_of_the_head_are_in_the_time(tiny_llama, monkeypatch):
    model, tokens = tiny_llama(), READ  # of gradients, at most 16384
    plain = READ + 3 * HELD_OUT + 4 * tokens
    paced(monkeypatch, block=1.0)
    assert expected(model).seconds == 2 * plain  # two blocks
    assert expected(model, "temperature").seconds == 2 * (plain + 2 * HELD_OUT)
    assert expected(model, "{name: anchored, windows: 4}").seconds == 2 * (plain + 4 * 4 * 32)
    scanned = expected(model, allocate="{name: measured_modules, windows: 2, grid: [0.5, 0.8, 1.0]}")
    assert scanned.seconds == 2 * (plain + 14 * 2 * 32)
    paced(monkeypatch, head=1.0)
    assert expected(model).seconds == 2 * HELD_OUT + 3 * tokens
    assert expected(model, "{name: distill, tokens: 1000, checks: 2}").seconds == pytest.approx(
        2 * HELD_OUT + 3 * tokens + 5 * (1000 + HELD_OUT)
    )


def test_the_pace_is_that_of_real_operations(tiny_llama):
    pace = Pace.of(Compressible(Decoder(tiny_llama())), WINDOWS.calibration)
    assert all(0 < value < 1 for value in (pace.block, pace.head, pace.product, pace.eigen))
    assert pace.decomposing((64, 512)) > pace.decomposing((32, 256))


def test_the_share_of_the_whole_model_is_said(tiny_llama):
    model = tiny_llama()
    linears = sum(linear.weight.numel() for block in Decoder(model).linears() for linear in block.values())
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert expected(model).touched == pytest.approx(linears / whole)


def test_the_bases_that_factors_are_cut_from_are_on_the_disk_beside_the_finished_blocks(tiny_llama):
    without, held = (expected(tiny_llama(), route=route) for route in ("eigen", "projector"))
    attention, mlp = 2 * 32**2 + 2 * 16**2, 3 * 32**2  # the squares of the smaller sides, k and v having 16 rows
    assert held.disk - without.disk == 2 * 8 * (attention + mlp)
