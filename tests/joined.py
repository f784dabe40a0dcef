"""Models whose linears are joined where they may be, without loss or at a rank."""

import torch
from transformers import PreTrainedModel

from slimrank.forms.joint import joint_layers
from slimrank.forms.linear import bias_of
from slimrank.model.modules import set_module
from slimrank.plan import Plan
from slimrank.serve.optimize import shared_inputs


def groups(model: PreTrainedModel) -> list[list[str]]:
    """The linears of one module that share an input and are taller than wide together."""
    found = []
    for names in shared_inputs(model):
        parents = {name.rpartition(".")[0] for name in names}
        linears = [model.get_submodule(name) for name in names]
        if len(parents) == 1 and sum(one.out_features for one in linears) > linears[0].in_features:
            found.append(names)
    return found


def join(model: PreTrainedModel, rank: int | None = None, inside: str = "") -> PreTrainedModel:
    """Every group in the form joint, of full rank by default; inside: the start of their names."""
    for names in groups(model):
        if not names[0].startswith(inside):
            continue
        dense = [model.get_submodule(name) for name in names]
        stack = torch.cat([linear.weight.detach() for linear in dense]).double()
        left, values, right = torch.linalg.svd(stack, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
        sizes, biases = [linear.out_features for linear in dense], [bias_of(linear) for linear in dense]
        layers = joint_layers(left * values, right, sizes, biases, names[0].rpartition(".")[2])
        for name, layer in zip(names, layers, strict=True):
            set_module(model, name, layer.float())
    return model


def joined(plan: Plan, rank: int) -> Plan:
    """The plan with q, k and v joined at this rank, and gate and up, all others at rank 1."""
    linears = {}
    for name, linear in plan.linears.items():
        parent, _, own = name.rpartition(".")
        leader = {"q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj", "gate_proj": "gate_proj"}
        first = (leader | {"up_proj": "gate_proj"}).get(own)
        unit = None if first is None else f"{parent}.{first}"
        form = plan.recipe.form.name if first is None else "joint"
        update = {"unit": unit, "rank": 1 if first is None else rank, "form": form}
        linears[name] = linear.model_copy(update=update)
    return plan.model_copy(update={"linears": linears})
