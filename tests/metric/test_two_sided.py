from dataclasses import replace

import pytest
import torch
from collected import collect, collect_gradients
from tiny_spectra import spectra
from torch.nn.functional import kl_div

from slimrank.calibrate import InputMoments, OutputMoments
from slimrank.errors import SlimrankError
from slimrank.metric.two_sided import TwoSided, ledoit_wolf
from slimrank.model.decoder import Decoder
from slimrank.numerics.gram_sum import GramSum
from slimrank.numerics.grams import Grams, shrunk_, squared_error


def outputs(g):
    return OutputMoments(
        GramSum.of(g.T @ g), g.new_zeros(g.shape[1]), fourth=g.square().sum(1).square().sum(), tokens=len(g)
    )


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_grams_are_means_over_tokens_with_the_half_on_the_left():
    g, x = draw(50, 4), draw(50, 6, seed=1)
    metric, inputs = TwoSided(shrink=0.0), InputMoments(GramSum.of(x.T @ x), x.abs().sum(0), tokens=len(x))
    torch.testing.assert_close(metric.left(outputs(g)), torch.einsum("ti,tj->ij", g, g) / 100)
    torch.testing.assert_close(metric.right(inputs), torch.einsum("ti,tj->ij", x, x) / 50)


def test_ledoit_wolf_minimises_the_estimated_distance_to_the_true_gram():
    g = draw(40, 5) * torch.tensor([1.0, 1, 1, 2, 3]).double()
    gram = g.T @ g / 40
    noise = torch.stack([(torch.outer(row, row) - gram).square().sum() for row in g]).mean() / 40
    expected = noise / (gram - shrunk_(gram.clone(), 1.0)).square().sum()
    assert ledoit_wolf(outputs(g)) == pytest.approx(expected.item())
    assert ledoit_wolf(outputs(draw(100_000, 3) * torch.tensor([1.0, 2, 3]).double())) < 1e-3
    assert 0 <= ledoit_wolf(outputs(draw(2, 3))) <= 1


def test_by_itself_it_shrinks_as_ledoit_and_wolf_say():
    found = outputs(draw(40, 5))
    torch.testing.assert_close(TwoSided().left(found), shrunk_(found.mean(), ledoit_wolf(found)) / 2)


def test_without_gradients_the_module_is_named(tiny_llama):
    made = spectra(tiny_llama())
    with pytest.raises(SlimrankError, match=r"model\.layers\.0\.self_attn\.q_proj"):
        replace(made, metric=TwoSided()).grams(next(iter(made.curves)))


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
    grams = Grams(metric.left(moments.output_of(name)), metric.right(moments.input_of(name)))
    predicted = squared_error(error, grams)
    with torch.no_grad():
        dense = model(ids).logits.log_softmax(-1)
        weight.add_(error)
        changed = model(ids).logits.log_softmax(-1)
    measured = kl_div(changed, dense, reduction="sum", log_target=True).item() / ids.numel()
    assert predicted == pytest.approx(measured, rel=0.25)
