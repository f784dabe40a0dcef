import pytest
import torch
from architectures import ARCHITECTURES
from sessions import session

from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.forms.kept_columns import KeptColumns
from slimrank.metric import Grams
from slimrank.metric.two_sided import TwoSided
from slimrank.model import set_module
from slimrank.refine.damped import factor_
from slimrank.refine.newton import LENGTHS, Newton, newton_step, right_factors
from slimrank.spectrum import decompose


class TwoColumns(LowRankFactorizer):
    """Keeps columns 1 and 4 and cuts the others."""

    def build(self, target, rank):
        kept = torch.tensor([1, 4])
        rest = torch.ones(target.weight.shape[1], dtype=torch.bool).index_fill(0, kept, False)
        left, right = decompose(target.weight[:, rest], Grams()).cut(rank)
        columns = target.weight[:, kept].detach()
        return KeptColumns.from_columns(columns, left.to(columns), right.to(columns), kept, target.bias)


FORMS = {"low_rank": LowRankFactorizer(), "pivoted": PivotedFactorizer(), "columns": TwoColumns()}


def compressed(model, form, rank=6, metric=None):
    made = session(model, metric=metric, labels="text" if metric else None)
    made.form = form
    for name in made.dense:
        set_module(made.decoder.model, name, made.form.build(made.target(name), rank))
    return made


def divergence(made, dense, ids):
    with torch.no_grad():
        ours = made.decoder.model(input_ids=ids).logits.log_softmax(-1)
    return (dense.exp() * (dense - ours)).sum(-1).mean().item()


def test_the_step_solves_the_kronecker_system():
    torch.manual_seed(0)
    left, gradient = torch.randn(7, 3).double(), torch.randn(3, 5).double()
    g, h = torch.randn(7, 20).double(), torch.randn(5, 20).double()
    outer, inner, damping = g @ g.T / 40, h @ h.T / 20, 0.03
    small = left.T @ (2 * outer) @ left

    def damped(gram):
        return gram + damping * gram.trace() / len(gram) * torch.eye(len(gram)).double()

    hessian = torch.kron(damped(small), damped(inner))  # of V row by row
    expected = torch.linalg.solve(hessian, gradient.flatten()).view(3, 5)
    torch.testing.assert_close(
        newton_step(factor_(small.clone(), damping), gradient, factor_(inner.clone(), damping)), expected
    )


def test_the_outer_gram_is_the_metrics_in_the_left_factors_coordinates(tiny_llama):
    for metric in (TwoSided(shrink=0.3), None):
        made = compressed(tiny_llama(), PivotedFactorizer(), metric=metric)
        name = next(iter(made.dense))
        left, gram = made.decoder.model.get_submodule(name).left(), made.metric.left_gram(made.site(name))
        outer = torch.eye(len(left)).double() if gram is None else 2 * gram
        small = left.T @ outer @ left
        small += 0.01 * small.trace() / len(small) * torch.eye(len(small)).double()
        factor = Newton()._outer_factor(made, name)
        torch.testing.assert_close(factor @ factor.T, small)


@pytest.mark.parametrize("form", FORMS)
def test_left_times_right_is_the_weight_and_the_gradient_is_that_of_the_divergence(tiny_llama, form):
    """Against autograd through the whole model at once."""
    made = compressed(tiny_llama(), FORMS[form])
    model, ids = made.decoder.model, made.windows.calibration
    for name in made.dense:
        layer = model.get_submodule(name)
        weight = layer.left() @ layer.right.weight.double()
        whole = layer.dense_weight()
        if form == "columns":
            whole = whole[:, [i for i in range(layer.in_features) if i not in (1, 4)]]
        torch.testing.assert_close(weight, whole)
    damping = 1e9  # the step is then the gradient over the damped means
    steps = {k: v for _, block in Newton(damping=damping)._steps(made) for k, v in block.items()}
    with made.replaced(made.dense), torch.no_grad():
        dense = model(input_ids=ids).logits.log_softmax(-1)
    rights = {k: v for i in range(len(made.linears)) for k, v in right_factors(made, i).items()}
    for right in rights.values():
        right.weight.requires_grad_()
    loss = (dense.exp() * (dense - model(input_ids=ids).logits.log_softmax(-1))).sum(-1).mean()
    expected = torch.autograd.grad(loss, [right.weight for right in rights.values()])
    for name, gradient in zip(rights, expected, strict=True):
        scale = gradient.abs().max() / steps[name].abs().max()
        torch.testing.assert_close(steps[name] * scale, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_divergence_on_held_out_windows_falls_to_what_the_note_says(name):
    made = compressed(ARCHITECTURES[name](), PivotedFactorizer(), metric=TwoSided())
    model, ids = made.decoder.model, made.windows.held_out
    with made.replaced(made.dense), torch.no_grad():
        dense = model(input_ids=ids).logits.log_softmax(-1)
    for vector in (p for p in model.parameters() if p.ndim == 1):
        vector.data.mul_(0.9)  # by an earlier refiner
    before, kept = divergence(made, dense, ids), {k: made.decoder.model.get_submodule(k).left() for k in made.dense}
    (note,) = Newton(windows=8).refine(made, {})
    after = divergence(made, dense, ids)
    assert after <= before + 1e-7
    assert note.endswith(f"from {before:.4f} to {after:.4f} nats a token.")
    assert all(torch.equal(model.get_submodule(k).left(), left) for k, left in kept.items())


def test_several_steps_run_in_turn_on_the_windows_that_come_next(tiny_llama):
    steps = Newton(steps=3, windows=4, skip=2).in_turn()
    assert steps == tuple(Newton(windows=4, skip=skip) for skip in (2, 6, 10))
    made, seen = compressed(tiny_llama(), PivotedFactorizer(), metric=TwoSided()), []
    made.windows.calibration[:] = torch.arange(len(made.windows.calibration))[:, None]
    made.track = lambda items, *_: items
    for step in Newton(steps=2, windows=5, skip=len(made.windows.calibration) - 2).in_turn():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("slimrank.refine.newton.States", lambda _, ids: seen.append(ids[:, 0].tolist()) or 1 / 0)
            with pytest.raises(ZeroDivisionError):
                next(step._steps(made))
    last = len(made.windows.calibration)
    assert seen == [[last - 2, last - 1, 0, 1, 2], [3, 4, 5, 6, 7]]


def test_the_length_is_the_best_of_those_tried_and_dense_linears_stay(tiny_llama):
    made = compressed(tiny_llama(), PivotedFactorizer(), metric=TwoSided())
    model, ids, dense_one = made.decoder.model, made.windows.held_out, next(iter(made.dense))
    set_module(model, dense_one, made.dense[dense_one])
    with made.replaced(made.dense), torch.no_grad():
        dense = model(input_ids=ids).logits.log_softmax(-1)
    steps = {k: v for _, block in Newton()._steps(made) for k, v in block.items()}
    assert steps.keys() == made.dense.keys() - {dense_one}
    start = {k: model.get_submodule(k).right.weight.detach().clone() for k in steps}
    found = {}
    for length in LENGTHS:
        for name, step in steps.items():
            model.get_submodule(name).right.weight.data.copy_(start[name] - length * step)
        found[length] = divergence(made, dense, ids)
    for name in steps:
        model.get_submodule(name).right.weight.data.copy_(start[name])
    Newton().refine(made, {})
    assert divergence(made, dense, ids) == pytest.approx(min(found.values()), rel=1e-5)
    assert min(found.values()) < found[0.0]
