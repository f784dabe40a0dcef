import pytest
import torch
from torch.nn.functional import kl_div

from slimrank.calibrate import collect, collect_gradients
from slimrank.calibrate.moments import InputMoments, OutputMoments
from slimrank.errors import SlimrankError
from slimrank.metric import Site
from slimrank.metric.two_sided import TwoSided, ledoit_wolf, shrunk_
from slimrank.model.decoder import Decoder
from slimrank.numerics.grams import squared_error


def outputs(g):
    return OutputMoments(
        g.T @ g, g.new_zeros(g.shape[1]), fourth=g.square().sum(1).square().sum().item(), tokens=len(g)
    )


def site(g, x, role="mlp.up"):
    inputs = InputMoments(x.T @ x, x.abs().sum(0), len(x))
    return Site("m", torch.ones(g.shape[1], x.shape[1]), inputs, outputs=outputs(g), role=role)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_grams_are_means_over_tokens_with_the_half_on_the_left():
    g, x = draw(50, 4), draw(50, 6, seed=1)
    grams = TwoSided(shrink=0.0).grams(site(g, x))
    torch.testing.assert_close(grams.left, torch.einsum("ti,tj->ij", g, g) / 100)
    torch.testing.assert_close(grams.right, torch.einsum("ti,tj->ij", x, x) / 50)


def test_a_scalar_role_keeps_the_mean_diagonal_alone():
    g, x = draw(50, 4), draw(50, 6, seed=1)
    g[:, 1] += 3 * g[:, 0]
    metric = TwoSided(scalar=("mlp.up",))
    torch.testing.assert_close(metric.grams(site(g, x)).left, torch.eye(4).double() * g.square().mean() / 2)
    assert metric.grams(site(g, x, role="mlp.down")).left[0, 1] != 0


def test_ledoit_wolf_minimises_the_estimated_distance_to_the_true_gram():
    g = draw(40, 5) * torch.tensor([1.0, 1, 1, 2, 3]).double()
    gram = g.T @ g / 40
    noise = torch.stack([(torch.outer(row, row) - gram).square().sum() for row in g]).mean() / 40
    expected = noise / (gram - shrunk_(gram.clone(), 1.0)).square().sum()
    assert ledoit_wolf(outputs(g)) == pytest.approx(expected.item())
    assert ledoit_wolf(outputs(draw(100_000, 3) * torch.tensor([1.0, 2, 3]).double())) < 1e-3
    assert 0 <= ledoit_wolf(outputs(draw(2, 3))) <= 1


def test_without_gradients_the_module_is_named():
    bare = Site("blocks.0.up", torch.ones(2, 2), InputMoments(torch.eye(2), torch.ones(2), 2))
    with pytest.raises(SlimrankError, match=r"blocks\.0\.up"):
        TwoSided().grams(bare)


def test_the_predicted_loss_of_a_small_perturbation_is_the_kl_divergence(tiny_llama):
    model = tiny_llama(num_hidden_layers=1)
    decoder = Decoder(model)
    linears = decoder.linears()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 320, (64, 16), generator=generator)
    moments = collect(decoder, ids, linears)
    collect_gradients(decoder, ids, linears, moments, labels="sampled", seed=1)
    name = next(k for k in linears[0] if k.endswith("down_proj"))
    weight = linears[0][name].weight
    error = 0.02 * torch.randn(weight.shape, generator=generator) * weight.std()
    metric = TwoSided(labels="sampled")
    grams = metric.grams(Site(name, weight, moments.input_of(name), outputs=moments.outputs[name]))
    predicted = squared_error(error, grams)
    with torch.no_grad():
        dense = model(ids).logits.log_softmax(-1)
        weight.add_(error)
        changed = model(ids).logits.log_softmax(-1)
    measured = kl_div(changed, dense, reduction="sum", log_target=True).item() / ids.numel()
    assert predicted == pytest.approx(measured, rel=0.25)
