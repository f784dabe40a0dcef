import torch
from sessions import session as session_of
from torch import nn

from slimrank.forms.base import Form
from slimrank.pipeline import factorize, make_plan
from slimrank.recipe import load_recipe
from slimrank.refine.whitened import Whitened, factors, inverse_root_, whitened


def gram(width, seed):
    x = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, 0] *= 30
    return x.T @ x


def test_the_inverse_root_makes_the_damped_gram_white():
    damped = gram(6, 0)
    damped += 0.1 * damped.diagonal().mean() * torch.eye(6)
    damped /= damped.diagonal().mean()
    root = inverse_root_(gram(6, 0), 0.1)
    torch.testing.assert_close(root @ damped @ root.T, torch.eye(6, dtype=torch.float64))


def test_the_coordinates_of_a_weight_lead_back_to_it():
    weight = torch.randn(5, 7)
    made = Whitened(gram(5, 1), gram(7, 2), torch.float32, 0.01)
    torch.testing.assert_close(made(made.right_inverse(weight)), weight, rtol=1e-4, atol=1e-5)


def test_the_gradient_in_the_coordinates_is_k_facs_root_of_the_weights():
    outputs, inputs = gram(5, 1), gram(7, 2)
    made = Whitened(outputs.clone(), inputs.clone(), torch.float64, 0.0)
    coordinates = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(5, 7, dtype=torch.float64)
    (made(coordinates) * slope).sum().backward()
    step = made(coordinates.grad)  # what a step along the gradient changes of the weight: G^-1 slope H^-1
    scale = outputs.diagonal().mean() * inputs.diagonal().mean()
    natural = scale * torch.linalg.solve(outputs, slope) @ torch.linalg.inv(inputs)
    torch.testing.assert_close(step, natural, rtol=1e-6, atol=1e-6)


def test_inside_the_factors_have_coordinates_and_outside_the_weights_they_had(tiny_llama):
    session = session_of(tiny_llama())
    factorize(session, make_plan(session, load_recipe("svd-llm")))
    model, ids = session.decoder.model, session.windows.held_out
    before, keys = model(ids).logits, list(model.state_dict())
    linears = [linear for block in factors(session) for linear in block.values()]
    forms = [module for module in model.modules() if isinstance(module, Form)]
    assert len(linears) == 2 * len(forms) > 0
    with whitened(session, windows=4):
        assert all(isinstance(linear.parametrizations.weight[0], Whitened) for linear in linears)
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-3, atol=1e-4)
    assert list(model.state_dict()) == keys and all(type(linear) is nn.Linear for linear in linears)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-3, atol=1e-4)
    with whitened(session, windows=0):
        assert list(model.state_dict()) == keys
