"""The training losses of DHO: Eq. 1 (teacher probabilities), Eq. 6 (supervised), Eq. 7 (distillation) and their sum.

Three facts that the paper, its pseudocode and the public scripts state differently are settled here, once:
the KL divergence runs teacher first (Eq. 3 and 7); it is multiplied by eta^2 (as the public scripts do, and as the
gradient of a softened softmax needs), which `scale_by_t2=False` switches off; the labelled and the unlabelled
distillation terms are averaged separately and then added, never pooled.

Shapes: N labelled and M unlabelled images in the batch, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import DualHeadLogits


class DualHeadLoss(NamedTuple):
    """Scalars of one step: total = ce_weight * ce + (1 - ce_weight) * kd."""

    total: Tensor
    ce: Tensor
    kd: Tensor


def soft_targets(teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Teacher probabilities, Eq. 1: softmax(cos(image, text) / (zeta * eta)).

    Args:
        teacher_logits: (N, C) cosine similarities over zeta, that is the teacher's ordinary logits.
        temperature: eta, the distillation temperature.

    Returns:
        (N, C) probabilities, no gradient.
    """
    return torch.softmax(teacher_logits.detach() / temperature, dim=-1)


def supervised_loss(ce_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the CE head, mean over the labelled batch (Eq. 6).

    Args:
        ce_logits: (N, C). labels: (N,) class indices.
    """
    return F.cross_entropy(ce_logits, labels)


def distillation_loss(
    kd_logits: Tensor, teacher_logits: Tensor, *, temperature: float, scale_by_t2: bool = True
) -> Tensor:
    """One distillation term of Eq. 7: mean over images of KL(p || softmax(kd_logits / eta)) * eta^2.

    Args:
        kd_logits: (N, C) logits of the KD head.
        teacher_logits: (N, C) logits of the teacher (Eq. 1 before the softmax, without eta); no gradient flows there.
        temperature: eta.
        scale_by_t2: multiply by eta^2 (the public scripts); False is the loss as printed.
    """
    targets = soft_targets(teacher_logits, temperature=temperature)
    log_probabilities = F.log_softmax(kd_logits / temperature, dim=-1)
    divergence = F.kl_div(log_probabilities, targets, reduction="batchmean")
    return divergence * temperature**2 if scale_by_t2 else divergence


def dual_head_loss(
    labeled: DualHeadLogits,
    labels: Tensor,
    teacher_labeled: Tensor,
    unlabeled: DualHeadLogits | None = None,
    teacher_unlabeled: Tensor | None = None,
    *,
    ce_weight: float = 0.5,
    temperature: float = 2.0,
    scale_by_t2: bool = True,
) -> DualHeadLoss:
    """The DHO objective: lambda * L_CE + (1 - lambda) * L_KD (Eq. 6, 7, Algorithm 1).

    Args:
        labeled: both heads' logits of the labelled batch, each (N, C).
        labels: (N,) class indices.
        teacher_labeled: (N, C) teacher logits of the labelled batch.
        unlabeled: both heads' logits of the unlabelled batch, each (M, C); None where there is none, and the second
            distillation term is then absent. Its `ce` part is not used.
        teacher_unlabeled: (M, C) teacher logits of the unlabelled batch; goes with `unlabeled`.
        ce_weight: lambda. temperature: eta. scale_by_t2: see distillation_loss.

    Raises:
        ValueError: one of `unlabeled` and `teacher_unlabeled` without the other.
    """
    if (unlabeled is None) != (teacher_unlabeled is None):
        raise ValueError("give both unlabeled logits and teacher_unlabeled logits, or neither")
    ce = supervised_loss(labeled.ce, labels)
    kd = distillation_loss(labeled.kd, teacher_labeled, temperature=temperature, scale_by_t2=scale_by_t2)
    if unlabeled is not None and teacher_unlabeled is not None:
        kd = kd + distillation_loss(unlabeled.kd, teacher_unlabeled, temperature=temperature, scale_by_t2=scale_by_t2)
    return DualHeadLoss(total=ce_weight * ce + (1 - ce_weight) * kd, ce=ce, kd=kd)


def binary_distillation_loss(kd_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """DHKD's loss (arXiv 2411.08937), its "BinaryKL-Norm": mean over images of the sum over classes of
    eta^2 KL(1/2 || sigmoid((kd_logits - teacher_logits) / eta)), the divergence between two coins.

    Args:
        kd_logits, teacher_logits: (N, C); no gradient flows to the teacher's. temperature: eta.
    """
    difference = (kd_logits - teacher_logits.detach()) / temperature
    # KL(1/2 || s) = -log 2 - (log s + log(1 - s)) / 2
    divergence = -math.log(2) - (F.logsigmoid(difference) + F.logsigmoid(-difference)) / 2
    return temperature**2 * divergence.sum(dim=-1).mean()


def feature_distillation_loss(features: Tensor, teacher_features: Tensor, num_classes: int) -> Tensor:
    """CLIP-KD's feature loss (arXiv 2307.12732): squared distance of unit-length features, mean over images.

    It is times log(C) / 2, so that features at a right angle cost as much as a guess does in cross-entropy: the paper
    says that the loss is scaled to the size of L_CE, not how.

    Args:
        features: (N, d) the student's, projected to the teacher's width. teacher_features: (N, d), no gradient.
        num_classes: C.
    """
    target = F.normalize(teacher_features.detach(), dim=-1)
    return math.log(num_classes) / 2 * (F.normalize(features, dim=-1) - target).pow(2).sum(dim=-1).mean()
