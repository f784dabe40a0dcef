"""The state of a training among a run's pieces, so that it resumes exactly after a kill."""

import torch
from torch import Tensor

from slimrank.refine.training import Best, Descent
from slimrank.store.pieces import Pieces


def save_training(pieces: Pieces, key: str, descent: Descent, best: Best, step: int) -> None:
    """Save parameters, optimisers and the best state after `step` steps, if pieces are on disk."""
    if not pieces.lasting:
        return
    tensors: dict[str, Tensor] = {}
    for index, master in enumerate(descent.masters):
        tensors |= {f"now/{index}": master.detach(), f"best/{index}": best.state[index]}
    for number, optimizer in enumerate(descent.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{name}": value for name, value in state.items()}
    pieces.save(key, tensors, {"step": step, "loss": best.loss, "best": best.step})


@torch.no_grad()
def resume_training(pieces: Pieces, key: str, descent: Descent, best: Best) -> int:
    """Load the saved state into `descent` and `best`; returns the steps already done, 0 if nothing was saved."""
    if key not in pieces:
        return 0
    tensors, facts = pieces.load(key)
    for index, master in enumerate(descent.masters):
        master.copy_(tensors[f"now/{index}"])
        best.state[index].copy_(tensors[f"best/{index}"])
    descent.follow()
    best.loss, best.step = facts["loss"], facts["best"]
    for number, optimizer in enumerate(descent.optimizers):
        states: dict[int, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            kind, _, rest = path.partition("/")
            if kind == "optimizer" and rest.startswith(f"{number}/"):
                _, place, name = rest.split("/")
                states.setdefault(int(place), {})[name] = tensor.clone()
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    for schedule in descent.schedules:
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": facts["step"]})
        for group, lr, scale in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = lr * scale(facts["step"])
    return int(facts["step"])
