from collections import Counter

import pytest
import torch
from architectures import ARCHITECTURES
from tiny_spectra import spectra
from torch.nn import Linear

from slimrank.calibrate.evidence import calibrate
from slimrank.errors import SlimrankError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.forms import Form, LowRank
from slimrank.metric.two_sided import TwoSided
from slimrank.metric.whitened import Whitened
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.model.modules import set_module
from slimrank.refine.anchored import Anchored
from slimrank.refine.base import Cuts
from slimrank.refine.sequential import anchored_target
from slimrank.spectrum.decompose import decompose
from slimrank.store.run import Run
from slimrank.texts.windows import Windows


def start(model, metric):
    ids = torch.randint(0, 320, (24, 16), generator=torch.Generator().manual_seed(0))
    compressible = Compressible(Decoder(model))
    evidence = calibrate(compressible, Windows(ids[:16], ids[16:], {"seed": 0}), metric.needs)
    return decompose(compressible, evidence, metric)


def refine(made, ranks, form=None, **options):
    """Anchored, with the linears at these ranks."""
    cuts = Cuts(form or PivotedFactorizer(), {made.model.units[name]: rank for name, rank in ranks.items()})
    return Anchored(**options).refine(made, cuts, Run())


def weights(made):
    modules = {name: made.model.decoder.model.get_submodule(name) for name in made.model.linears}
    return {name: m.dense_weight() for name, m in modules.items() if isinstance(m, Form)}


def test_the_target_is_the_mix_of_the_weight_and_the_regression():
    torch.manual_seed(0)
    x, t, w = torch.randn(30, 5).double(), torch.randn(30, 3).double(), torch.randn(3, 5).double()
    regression = torch.linalg.lstsq(x, t).solution.T
    gram, cross = x.T @ x / 30, t.T @ x / 30
    torch.testing.assert_close(anchored_target(w, gram.clone(), cross, 1.0, 0.0), regression)
    torch.testing.assert_close(anchored_target(w, gram.clone(), cross, 0.25, 0.0), 0.75 * w + 0.25 * regression)
    assert anchored_target(w, gram.clone(), cross, 0.0, 0.1).equal(w)
    # damping is a ridge towards W: rows of weight sqrt(30 damping tr/n) that ask for W
    ridge = (30 * 0.1 * gram.trace() / 5).sqrt() * torch.eye(5).double()
    expected = torch.linalg.lstsq(torch.cat([x, ridge]), torch.cat([t, ridge @ w.T])).solution.T
    torch.testing.assert_close(anchored_target(w, gram.clone(), cross, 1.0, 0.1), expected)


def test_a_gram_that_rounding_made_indefinite_is_damped_until_it_can_be_factored():
    gram = torch.diag(torch.tensor([4.0, 1.0, -1e-5])).double()
    w, cross = torch.ones(2, 3).double(), torch.zeros(2, 3).double()
    damped = gram + (1e-6 + 1e-5) * gram.trace() / 3 * torch.eye(3).double()
    expected = w - w @ gram @ damped.inverse()
    torch.testing.assert_close(anchored_target(w, gram.clone(), cross, 1.0, 1e-6), expected)
    with pytest.raises(SlimrankError, match="NaN or Inf"):
        anchored_target(w, gram * torch.nan, cross, 1.0, 1e-6)


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_an_uncompressed_prefix_reduces_to_the_plain_truncation(tiny_llama, mix):
    made = start(tiny_llama(), Whitened())
    name = next(k for k in made.model.blocks[1] if k.endswith("up_proj"))
    left, right = made.cut(made.model.units[name], 8)
    refine(made, {name: 8}, mix=mix, shrink=0.0)
    assert list(weights(made)) == [name]
    torch.testing.assert_close(weights(made)[name], left @ right, atol=2e-3, rtol=2e-3)


def test_only_planned_linears_change_at_the_planned_rank(tiny_llama):
    made = start(tiny_llama(), TwoSided())
    assert refine(made, {name: 7 for name in made.model.linears if not name.endswith("q_proj")}) == []
    for name, dense in made.model.linears.items():
        layer = made.model.decoder.model.get_submodule(name)
        assert layer is dense if name.endswith("q_proj") else layer.rank == 7


def test_the_last_linear_is_the_least_squares_map_to_the_dense_residual_stream(tiny_llama):
    """At mix 1 and full rank in it, an independent regression gives the same weight."""
    made = start(tiny_llama(num_hidden_layers=1), Whitened())
    model, ids = made.model.decoder.model, made.evidence.windows.calibration
    with torch.no_grad():
        seen = {}
        block = model.model.layers[0]
        handle = block.register_forward_hook(lambda m, a, out: seen.update(out=out if torch.is_tensor(out) else out[0]))
        model(ids)
        dense = seen["out"]
        down = next(k for k in made.model.linears if k.endswith("down_proj"))
        refine(made, dict.fromkeys(made.model.linears, 6) | {down: 32}, mix=1.0, damping=1e-9, shrink=0.0)
        down_layer = model.get_submodule(down)
        pre = down_layer.register_forward_hook(lambda m, a, y: seen.update(x=a[0], y=y))
        model(ids)
        handle.remove(), pre.remove()
    x = seen["x"].flatten(0, 1).double()
    wanted = (dense - (seen["out"] - seen["y"])).flatten(0, 1).double()
    expected = torch.linalg.lstsq(x, wanted).solution.T
    torch.testing.assert_close(down_layer.dense_weight(), expected, atol=2e-3, rtol=2e-3)


def test_anchoring_lowers_the_distance_to_the_dense_model(tiny_llama):
    def distance(**options):
        made = start(tiny_llama(), Whitened())
        model, ids = made.model.decoder.model, made.evidence.windows.calibration
        with torch.no_grad():
            dense = model.model(ids).last_hidden_state
            for unit in made.curves:
                left, right = made.cut(unit, 8)
                plain = torch.nn.Linear(*unit.shape[::-1], bias=False)
                plain.weight.copy_(left @ right)
                set_module(model, unit.leader, plain)
            if options:
                refine(made, dict.fromkeys(made.model.linears, 8), **options)
            return (model.model(ids).last_hidden_state - dense).square().sum().item()

    assert distance(mix=1.0) < distance()


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_not_run_again_changes_nothing(name, kept, monkeypatch):
    def anchored():
        made = spectra(ARCHITECTURES[name]())
        some = [linear for place, linear in enumerate(made.model.linears) if kept == 1 or place % kept]
        refine(made, dict.fromkeys(some, 5), LowRankFactorizer())
        return made.model.decoder.model.state_dict()

    replaying = anchored()
    monkeypatch.setattr("slimrank.refine.pair.HELD", 0)
    for key, tensor in anchored().items():
        assert torch.equal(replaying[key], tensor)


def test_every_compressed_linear_runs_once_for_each_batch(tiny_llama, monkeypatch):
    calls, original = [], LowRank.forward
    monkeypatch.setattr(LowRank, "forward", lambda self, x: (calls.append(self), original(self, x))[1])
    made = spectra(tiny_llama())
    monkeypatch.setattr("slimrank.refine.pair.default_batch", lambda *_: 2)
    batches, linears = len(made.evidence.windows.calibration) // 2, len(made.model.linears)
    refine(made, dict.fromkeys(made.model.linears, 5), LowRankFactorizer())
    assert len(calls) == linears * batches


def test_linears_that_stay_run_once_for_each_batch_in_both_models(tiny_llama, monkeypatch):
    calls, original = Counter(), Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x: (calls.update([self]), original(self, x))[1])
    made = spectra(tiny_llama())
    monkeypatch.setattr("slimrank.refine.pair.default_batch", lambda *_: 2)
    batches = len(made.evidence.windows.calibration) // 2
    kept = [name for name in made.model.linears if name.endswith(("q_proj", "o_proj", "up_proj"))]
    calls.clear()
    refine(made, {name: 5 for name in made.model.linears if name not in kept}, LowRankFactorizer())
    assert [calls[made.model.linears[name]] for name in kept] == [2 * batches] * len(kept)
