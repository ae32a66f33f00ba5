"""Gradient conflict between L_CE and L_KD, as the paper looks at it (Section 3.2, E.1; Fig. 4 and 13).

Shapes: N labelled images, C classes, d feature width. All is computed in float64. What is not defined, the cosine with
a gradient that is zero and the spectrum of a head without rows, is nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads import DualHeadLogits
from ..losses import soft_targets


class Agreement(NamedTuple):
    """Of a gradient g_CE of L_CE with a gradient g_KD of L_KD, both of the unweighted losses.

    Attributes:
        cosine: g_CE . g_KD / (|g_CE| |g_KD|), which the losses' weights do not change. inner_product: g_CE . g_KD.
    """

    cosine: Tensor
    inner_product: Tensor


class Spectrum(NamedTuple):
    """How much the heads stretch what they send back to the features (Fig. 13, left); nan without rows.

    Attributes:
        ce_eigenvalue, kd_eigenvalue: the largest eigenvalue of W W^T, of each head; the two are equal for a single one.
        singular_value: the largest of W_CE W_KD^T, of which a single head makes W W^T, and so its eigenvalue.
        eigenvalue: the largest modulus of an eigenvalue of W_CE W_KD^T, which is not symmetric: the paper's word for
            the above, though it says little of how much the product stretches.
    """

    ce_eigenvalue: float
    kd_eigenvalue: float
    singular_value: float
    eigenvalue: float


def parameter_agreement(ce: Sequence[Tensor], kd: Sequence[Tensor]) -> Agreement:
    """Cos(grad_theta L_CE, grad_theta L_KD), Fig. 4, theta being all shared parameters as one vector; scalars.

    Args:
        ce, kd: each loss's gradients with respect to the same parameters.
    """
    dots = [
        torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()])
        for a, b in ((one.double(), other.double()) for one, other in zip(ce, kd, strict=True))
    ]
    if not dots:
        return Agreement(torch.tensor(math.nan), torch.tensor(math.nan))
    inner, *squares = torch.stack(dots).sum(dim=0)
    return Agreement(inner / (squares[0].sqrt() * squares[1].sqrt()), inner)


def feature_agreement(ce: Tensor, kd: Tensor) -> Agreement:
    """CosSim(grad_z L_CE, grad_z L_KD) of each image, Eq. 5 and 9 (Fig. 13, right); both (N,).

    Args:
        ce, kd: (N, d), the gradients with respect to the feature of a labelled image of its own terms of L_CE and L_KD,
            not divided by N as in the means of Eq. 6 and 7.
    """
    one, other = ce.double(), kd.double()
    inner = (one * other).sum(dim=-1)
    return Agreement(inner / (one.norm(dim=-1) * other.norm(dim=-1)), inner)


def prediction_discrepancy(logits: DualHeadLogits, labels: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """(p_CE - y) . (p_KD - p) of each labelled image (Section 3.2; the crosses of Fig. 4), (N,).

    p_KD and p are softened by eta as they are in L_KD, and p_CE is not: so linear heads have W_CE^T (p_CE - y) and, up
    to a factor, W_KD^T (p_KD - p) for the gradients of Eq. 8.

    Args:
        logits: both heads', each (N, C); a single head's twice. labels: (N,). teacher: its logits (N, C).
        temperature: eta.
    """
    ce, kd = logits.ce.double(), logits.kd.double()
    supervised = torch.softmax(ce, dim=-1) - F.one_hot(labels, ce.shape[-1])
    distilled = torch.softmax(kd / temperature, dim=-1) - soft_targets(teacher.double(), temperature=temperature)
    return (supervised * distilled).sum(dim=-1)


def spectrum(ce: Tensor | None, kd: Tensor | None) -> Spectrum:
    """See Spectrum.

    Args:
        ce, kd: rows W (C, d) of the heads, see heads.effective_rows; None for a head without.
    """
    one, other = (None if rows is None else rows.detach().double() for rows in (ce, kd))
    ce_value, kd_value = (math.nan if rows is None else _largest(rows) ** 2 for rows in (one, other))
    if one is None or other is None:
        return Spectrum(ce_value, kd_value, math.nan, math.nan)
    # The product of orthonormal columns changes no singular value, and the factors R are d wide where C is more.
    first, second = (torch.linalg.qr(rows, mode="r").R for rows in (one, other))
    product = one @ other.T if len(one) <= one.shape[1] else other.T @ one  # both have the eigenvalues that are not 0
    eigenvalue = torch.linalg.eigvals(product).abs().max().item()
    return Spectrum(ce_value, kd_value, _largest(first @ second.T), eigenvalue)


def _largest(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix, ord=2).item()
