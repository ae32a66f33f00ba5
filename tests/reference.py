"""The paper's formulas, slow and obvious: loops over images and classes, no code shared with the package."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(row: Tensor) -> list[Tensor]:
    largest = max(value.item() for value in row)
    exponentials = [torch.exp(value - largest) for value in row]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def teacher_probabilities(image: Tensor, texts: Tensor, zeta: float, eta: float) -> list[Tensor]:
    """Eq. 1 for one image feature (d,) and C text features (C, d)."""
    scores = []
    for text in texts:
        cosine = sum(a * b for a, b in zip(image, text, strict=True)) / (image.pow(2).sum() * text.pow(2).sum()).sqrt()
        scores.append(cosine / (zeta * eta))
    return softmax(torch.stack(scores))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 6 without its weight."""
    terms = [-torch.log(softmax(row)[int(label)]) for row, label in zip(logits, labels, strict=True)]
    return sum(terms) / len(terms)


def distillation(kd_logits: Tensor, teacher_logits: Tensor, eta: float, t2: bool) -> Tensor:
    """One term of Eq. 7: the teacher's distribution stands first in the divergence."""
    terms = []
    for student_row, teacher_row in zip(kd_logits, teacher_logits, strict=True):
        p, q = softmax(teacher_row / eta), softmax(student_row / eta)
        terms.append(sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True)))
    return sum(terms) / len(terms) * (eta * eta if t2 else 1.0)


def dual_head(ce_l, kd_l, labels, teacher_l, kd_u, teacher_u, ce_weight: float, eta: float, t2: bool) -> Tensor:
    """lambda L_CE + (1 - lambda) L_KD with two separately averaged distillation terms."""
    kd = distillation(kd_l, teacher_l, eta, t2)
    if kd_u is not None:
        kd = kd + distillation(kd_u, teacher_u, eta, t2)
    return ce_weight * cross_entropy(ce_l, labels) + (1 - ce_weight) * kd


def cosine_head(features: Tensor, rows: Tensor, zeta: float) -> Tensor:
    """Eq. 10."""
    out = []
    for z in features:
        out.append(torch.stack([(z @ w) / (z.norm() * w.norm()) / zeta for w in rows]))
    return torch.stack(out)


def interpolation(ce: Tensor, kd: Tensor, alpha: float, beta: float, classes: list[int] | None = None) -> Tensor:
    """Eq. 11; a subset of the classes is chosen before the softmax."""
    out = []
    for ce_row, kd_row in zip(ce, kd, strict=True):
        if classes is not None:
            ce_row = torch.stack([ce_row[c] for c in classes])
            kd_row = torch.stack([kd_row[c] for c in classes])
        p, q = softmax(ce_row), softmax(kd_row / beta)
        out.append(torch.stack([alpha * a + (1 - alpha) * b for a, b in zip(p, q, strict=True)]))
    return torch.stack(out)
