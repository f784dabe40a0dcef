import pytest
import torch
from tiny_spectra import spectra

from slimrank.metric.whitened import Whitened
from slimrank.numerics.grams import square_root


def test_whitened_calibration_activations_have_identity_covariance(tiny_llama):
    made = spectra(tiny_llama())
    seen = {}
    for name, module in made.model.linears.items():
        module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, args[0]))
    made.model.decoder.model(made.evidence.windows.calibration)
    for name, x in seen.items():
        x = x.detach().double().flatten(0, 1).T
        _, inverse = square_root(x @ x.T)
        whitened = inverse @ x
        torch.testing.assert_close(whitened @ whitened.T, torch.eye(len(x)).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(Whitened().right(made.evidence.input_of(name)), x @ x.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("route", ["cholesky", "eigen", "projector"])
def test_the_plans_loss_is_the_output_error_on_calibration(tiny_llama, route):
    made = spectra(tiny_llama(), route=route)
    assert len(made.curves) == 14
    for unit, curve in made.curves.items():
        left, right = made.cut(unit, 7)
        error, gram = made.weight(unit).double() - left @ right, made.evidence.input_of(unit.leader).gram()
        torch.testing.assert_close((error @ gram * error).sum(), curve.losses()[7], rtol=1e-6, atol=0)
