import pytest
import torch
from sessions import session

from slimrank.metric.whitened import Whitened
from slimrank.numerics.grams import square_root


def test_whitened_calibration_activations_have_identity_covariance(tiny_llama):
    made = session(tiny_llama())
    seen = {}
    for name, module in made.dense.items():
        module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, args[0]))
    made.decoder.model(made.windows.calibration)
    for name, x in seen.items():
        x = x.detach().double().flatten(0, 1).T
        _, inverse = square_root(x @ x.T)
        whitened = inverse @ x
        torch.testing.assert_close(whitened @ whitened.T, torch.eye(len(x)).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(Whitened().grams(made.site(name)).right, x @ x.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("route", ["cholesky", "eigen", "projector"])
def test_the_plans_loss_is_the_output_error_on_calibration(tiny_llama, route):
    made = session(tiny_llama(), metric=Whitened(route=route))
    for name, found in ((name, made.decompositions[name]) for name in made.dense):
        site, losses = made.site(name), made.spectrum().linears[name].losses()
        left, right = found.cut(7)
        error = site.weight.double() - left @ right
        torch.testing.assert_close((error @ site.inputs.gram * error).sum(), losses[7], rtol=1e-6, atol=0)
