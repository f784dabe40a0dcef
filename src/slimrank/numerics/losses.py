"""Losses of logits: next-token negative log-likelihood, and KL from another model's logits."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, pad


def next_token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p in nats, float32, of the token that follows each of ids (windows, tokens); 0 for the last of a window.

    logits: (windows, tokens, vocabulary).
    """
    # masking the last position saves a copy of the logits
    targets = pad(ids[:, 1:], (0, 1), value=-100).to(logits.device)
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(ids.shape)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats per token, from logits (batch, tokens, vocabulary)."""
    log_p, log_q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return kl_div(log_q.flatten(0, 1), log_p.flatten(0, 1), reduction="batchmean", log_target=True)


def divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats per token of each window, (windows,) float64, without its last position."""
    pairs = zip(student[:, :-1].split(1), teacher[:, :-1].split(1), strict=True)
    return torch.stack([divergence(own, other).double() for own, other in pairs])


def scaled_divergences(student: Tensor, teacher: Tensor, factors: Sequence[float]) -> Tensor:
    """KL(teacher || factor * student) summed over tokens, for each factor: (factors,) float64.

    student, teacher: logits (..., vocabulary). Only the log-sum-exp is computed for each factor.
    """
    log_p, student = teacher.float().log_softmax(-1), student.float()
    p = log_p.exp()
    negentropy = torch.linalg.vecdot(p, log_p).double().sum()
    expected = torch.linalg.vecdot(p, student).double().sum()
    normed = [(factor * student).logsumexp(-1).double().sum() - factor * expected for factor in factors]
    return negentropy + torch.stack(normed)


def costs(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Sums in nats over tokens: KL(teacher || student), and -log p of the labels by the teacher and by the student.

    student, teacher: logits (windows, tokens, vocabulary); labels (windows, tokens) int64, -100 where there is none.
    """
    log_p, student = teacher.float().log_softmax(-1), student.float()
    p, normed = log_p.exp(), student.logsumexp(-1)
    divergence = torch.linalg.vecdot(p, log_p) - torch.linalg.vecdot(p, student) + normed
    there, places = labels != -100, labels.clamp_min(0).unsqueeze(-1)
    of_teacher = -log_p.gather(-1, places).squeeze(-1)[there]
    of_student = (normed - student.gather(-1, places).squeeze(-1))[there]
    sums = torch.stack([one.double().sum() for one in (divergence, of_teacher, of_student)])
    found: tuple[float, float, float] = tuple(sums.tolist())
    return found
