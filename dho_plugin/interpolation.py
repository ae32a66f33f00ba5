"""Inference: the two heads' probabilities interpolated (Eq. 11, Algorithm 2), and the search for alpha and beta."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .contenders import contenders
from .heads import DualHeadLogits

ALPHA_GRID = tuple(round(0.05 * i, 2) for i in range(21))
BETA_GRID = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)
_ROWS = 2048  # images at a time

SOURCES = ("fixed", "val", "oracle")
"""Who chose alpha and beta: the configuration, a search on validation images, or one on the test images."""


class AlphaBeta(NamedTuple):
    """The best point of a grid, and its accuracy in percent on the images it was searched on."""

    alpha: float
    beta: float
    accuracy: float


class Interpolation(nn.Module):
    """Alpha and beta as a part of a model, so that a checkpoint carries them.

    Attributes:
        alpha, beta: see interpolate. source: one of SOURCES.
    """

    def __init__(self, alpha: float, beta: float, source: str = SOURCES[0]) -> None:
        super().__init__()
        self.alpha, self.beta, self.source = alpha, beta, source

    def forward(self, logits: DualHeadLogits) -> Tensor:
        """Class probabilities (N, C), Eq. 11."""
        return interpolate(logits, alpha=self.alpha, beta=self.beta)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.alpha, self.beta, SOURCES.index(self.source)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.alpha, self.beta, source = state.tolist()
        self.source = SOURCES[int(source)]


def interpolate(logits: DualHeadLogits, *, alpha: float, beta: float) -> Tensor:
    """Combined class probabilities, Eq. 11: alpha * softmax(ce) + (1 - alpha) * softmax(kd / beta).

    Args:
        logits: both heads' logits, each (N, C). For a test set with a subset of the classes restrict them first
            (DualHeadLogits.restrict): a softmax over all classes followed by a selection is another formula.
        alpha: weight of the CE head in [0, 1]. beta: temperature of the KD head, > 0.

    Returns:
        (N, C) probabilities; the prediction is their argmax.
    """
    return mix(torch.softmax(logits.ce, dim=-1), kd_probabilities(logits.kd, beta=beta), alpha=alpha)


def mix(ce: Tensor, kd: Tensor, *, alpha: float) -> Tensor:
    """Eq. 11 from both heads' probabilities."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the weight of the CE head and must lie in [0, 1], got {alpha}")
    return alpha * ce + (1 - alpha) * kd


def kd_probabilities(logits: Tensor, *, beta: float) -> Tensor:
    """The KD head's part of Eq. 11, softmax(kd / beta)."""
    if not beta > 0:
        raise ValueError(f"beta is the temperature of the KD head and must be positive, got {beta}")
    return torch.softmax(logits / beta, dim=-1)


def accuracy_grid(
    logits: DualHeadLogits,
    labels: Tensor,
    *,
    alphas: tuple[float, ...] = ALPHA_GRID,
    betas: tuple[float, ...] = BETA_GRID,
) -> Tensor:
    """Accuracy in percent of Eq. 11 at each alpha and beta: float64 (alphas, betas), on the CPU.

    All is in float64, and the accuracies are those of all classes, although only `contenders` are compared.

    Args:
        logits: both heads' logits, each (N, C). labels: (N,).
    """
    hits = torch.zeros(len(alphas), len(betas), dtype=torch.int64, device=labels.device)
    for ce, kd, true in zip(*(part.split(_ROWS) for part in (*logits, labels)), strict=True):
        both = DualHeadLogits(ce.double(), kd.double())
        classes = contenders(both).classes
        right = classes.eq(true[:, None])
        p_ce = torch.softmax(both.ce, dim=-1).gather(-1, classes)
        for b, beta in enumerate(betas):
            p_kd = kd_probabilities(both.kd, beta=beta).gather(-1, classes)
            for a, alpha in enumerate(alphas):
                winners = mix(p_ce, p_kd, alpha=alpha).argmax(dim=-1, keepdim=True)
                hits[a, b] += right.gather(-1, winners).sum()
    return 100.0 * (hits.cpu().double() / len(labels))


def best_point(accuracy: Tensor, alphas: tuple[float, ...], betas: tuple[float, ...]) -> AlphaBeta:
    """The best point of a grid (alphas, betas): of equal ones that with alpha nearest 0.5, then with beta nearest 1.

    A tie should not pick an edge of the grid.
    """
    best, best_key = AlphaBeta(alphas[0], betas[0], -1.0), (-1.0, 0.0, 0.0)
    for beta, of_beta in zip(betas, accuracy.T.tolist(), strict=True):
        for alpha, value in zip(alphas, of_beta, strict=True):
            key = (value, -abs(alpha - 0.5), -abs(beta - 1.0))
            if key > best_key:
                best, best_key = AlphaBeta(alpha, beta, value), key
    return best


def search_alpha_beta(
    logits: DualHeadLogits,
    labels: Tensor,
    *,
    split: str,
    allow_oracle: bool = False,
    alphas: tuple[float, ...] = ALPHA_GRID,
    betas: tuple[float, ...] = BETA_GRID,
) -> AlphaBeta:
    """Find the alpha and beta of the highest accuracy on a declared validation split.

    The logits are computed once by the caller; the grid costs no forward pass. See accuracy_grid and best_point.

    Args:
        logits: both heads' logits of the split, each (N, C). labels: (N,).
        split: the name of the split the images come from, for example "val".
        allow_oracle: search on a test split all the same; such a result must be called "oracle" wherever it is shown.

    Raises:
        ValueError: `split` is "test" and no oracle was asked for.
    """
    if split == "test" and not allow_oracle:
        raise ValueError(
            "alpha and beta may not be searched on the test split: use a validation split, the preset's fixed values, "
            "or ask for the oracle by name (allow_oracle=True) and label the result so"
        )
    return best_point(accuracy_grid(logits, labels, alphas=alphas, betas=betas), alphas, betas)
