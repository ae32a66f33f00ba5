"""How good and how honest class probabilities are, and whether errors follow a system.

Shapes: N images, C classes; probabilities (N, C), labels and predictions (N,) class indices. Accuracies and confidences
are fractions in [0, 1]; sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_HOTTEST = 64.0
_ROWS = 8192  # images at a time, so that 128,000 images of 1,000 classes need no second gigabyte


class Concentration(NamedTuple):
    """See systematic_confusions.

    Attributes:
        errors: wrong answers in classes that have two or more of them; no others are looked at.
        share: of these, the part that falls on its class's most frequent wrong answer; nan without errors.
        expected: what that part would be on average by chance.
        p_value: how often chance gives a part as large, at least.
    """

    errors: int
    share: float
    expected: float
    p_value: float


class Reliability(NamedTuple):
    """Images by confidence, see reliability.

    Attributes:
        images, right: int64 (bins,), how many a bin has, and of these right ones. confidence: float64 (bins,), the sum
            of their highest probabilities.
    """

    images: Tensor
    right: Tensor
    confidence: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Of each bin; nan where it is empty."""
        return self.right / self.images

    @property
    def mean_confidence(self) -> Tensor:
        """Of each bin; nan where it is empty."""
        return self.confidence / self.images

    @property
    def error(self) -> float:
        """ECE: mean over images of |accuracy - confidence| of the bin they fall into."""
        return (self.right - self.confidence).abs().sum().item() / int(self.images.sum())

    @staticmethod
    def pooled(parts: Sequence[Reliability]) -> Reliability:
        """Of all images of several sets."""
        images, right, confidence = (torch.stack(part).sum(dim=0) for part in zip(*parts, strict=True))
        return Reliability(images, right, confidence)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy; scores are probabilities or logits."""
    return scores.argmax(dim=-1).eq(labels).double().mean().item()


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """How often the true class is among the k highest scores."""
    return scores.topk(k, dim=-1).indices.eq(labels[:, None]).any(dim=-1).double().mean().item()


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % interval (Wilson's score interval) of a fraction of which `right` of `total` were seen."""
    z, p = 1.959964, right / total
    middle, spread = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def mean_confidence(probabilities: Tensor) -> float:
    """Mean of the highest probability."""
    return probabilities.max(dim=-1).values.double().mean().item()


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Images by their highest probability, in bins of equal width over [0, 1], each open below and closed above."""
    confidence, predicted = probabilities.double().max(dim=-1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    right = predicted.eq(labels)
    images, hits = (torch.bincount(places, minlength=bins) for places in (place, place[right]))
    return Reliability(images, hits, torch.bincount(place, confidence, minlength=bins))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """ECE (Guo et al., arXiv 1706.04599), see Reliability.error. It is biased upward where bins hold few images."""
    return reliability(probabilities, labels, bins).error


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Mean of -log of the true class's probability, in nats; 0 counts as the smallest normal number of the dtype."""
    true = probabilities.gather(-1, labels[:, None]).clamp_min(torch.finfo(probabilities.dtype).tiny)
    return -true.double().log().mean().item()


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over images of the squared distance to the one-hot label, summed over classes: in [0, 2]."""
    squares = probabilities.double().pow(2).sum(dim=-1)
    true = probabilities.gather(-1, labels[:, None])[:, 0].double()
    return (squares - 2 * true + 1).mean().item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature t in (1/64, 64) of least negative log-likelihood of softmax(logits / t).

    Returns:
        t, None where the likelihood still grows at an end of the range: colder and colder where no image is wrong,
        hotter and hotter where the logits say nothing of the labels.
    """

    def slope(cold: float) -> float:
        """Derivative of the sum by 1/t, which grows with 1/t: the likelihood is log-concave in it."""
        total = 0.0
        for rows, true in zip(logits.split(_ROWS), labels.split(_ROWS), strict=True):
            rows = rows.double()
            expected = (rows * (rows * cold).softmax(dim=-1)).sum(dim=-1)
            total += (expected - rows.gather(-1, true[:, None])[:, 0]).sum().item()
        return total

    low, high = 1 / _HOTTEST, _HOTTEST
    if slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(18):  # to 2e-5
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / middle


def confusions(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts of predictions: int64 (C, C), a row for each true class, a column for each predicted one."""
    flat = labels * num_classes + predicted
    return torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def systematic_confusions(counts: Tensor, draws: int = 1000, seed: int = 0) -> Concentration:
    """Whether the wrong answers of a class are the same wrong answer more often than chance would have it.

    The statistic is the share of errors that fall on their class's most frequent wrong answer, over the classes with
    two or more errors. By chance, the wrong answers of a class are spread as those of all other classes are, plus one
    answer spread evenly over them: a model that answers one class too often is not systematic by this, one that takes
    A for B and C for D is. The p-value counts how many of `draws` such spreads concentrate at least as much.

    Args:
        counts: (C, C), see confusions. seed: of the draws.
    """
    wrong = counts.detach().cpu().clone().fill_diagonal_(0)
    of_class, answers = wrong.sum(dim=1), wrong.sum(dim=0)
    judged = (of_class >= 2).nonzero()[:, 0].tolist()
    if not judged:
        return Concentration(0, math.nan, math.nan, 1.0)
    generator = torch.Generator().manual_seed(seed)
    by_chance = torch.zeros(draws, dtype=torch.int64)
    for c in judged:
        weights = (answers - wrong[c]).double() + 1 / (len(wrong) - 1)
        weights[c] = 0
        drawn = torch.multinomial(weights, int(of_class[c]) * draws, replacement=True, generator=generator)
        drawn = drawn.reshape(draws, -1)
        by_chance += drawn.eq(drawn.mode(dim=1, keepdim=True).values).sum(dim=1)
    errors, top = int(of_class[judged].sum()), int(wrong[judged].max(dim=1).values.sum())
    p_value = (1 + int((by_chance >= top).sum())) / (1 + draws)
    return Concentration(errors, top / errors, by_chance.double().mean().item() / errors, p_value)
