"""Who predicts: each head by itself and both combined, and how honest the probabilities of each are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..calibration import (
    Reliability,
    accuracy,
    brier_score,
    mean_confidence,
    negative_log_likelihood,
    reliability,
    top_k_accuracy,
)
from ..errors import UsageError
from .answers import Answers
from .over_seeds import Section, details, values_table

CE, KD, KD_AT_BETA, SINGLE = "CE head", "KD head", "KD head at beta", "the one head"
CONTROL = "control"  # another run, or the student before its training
CHOSEN = {"fixed": "fixed", "val": "validation", "oracle": "oracle"}
"""What stands beside a combination, by interpolation.SOURCES."""
TOP = 5


class Calibration(NamedTuple):
    """Of one predictor; accuracies and confidence in percent, see calibration.py for the others.

    Attributes:
        top_5: nan where there are no more than five classes.
    """

    top_1: float
    top_5: float
    confidence: float
    ece: float
    nll: float
    brier: float
    bins: Reliability


def combined(chosen: str) -> str:
    """The name of the combination at the run's alpha and beta, which says who chose them."""
    return f"combined ({CHOSEN[chosen]})"


def predictors(answers: Answers) -> Iterator[tuple[str, Tensor]]:
    """Name and probabilities (N, C), one after another: with 1,000 classes each is large.

    "KD head" is its own softmax, "KD head at beta" the one that Eq. 11 mixes; the second is left out where beta is
    fixed at 1.
    """
    if answers.kd is None:
        yield SINGLE, answers.probabilities()
        return
    yield CE, answers.probabilities(alpha=1.0)
    yield KD, answers.probabilities(alpha=0.0, beta=1.0)
    if answers.beta != 1 or answers.chosen != "fixed":
        yield KD_AT_BETA, answers.probabilities(alpha=0.0)
    yield combined(answers.chosen), answers.probabilities()


def predictions(answers: Answers) -> dict[str, Tensor]:
    """The predicted classes (N,) of each predictor; beta changes nothing in those of the KD head."""
    return {name: p.argmax(dim=-1) for name, p in predictors(answers) if name != KD_AT_BETA}


def accuracies(answers: Answers) -> dict[str, float]:
    """Of each predictor, in percent."""
    return {name: 100 * accuracy(p, answers.labels) for name, p in predictors(answers) if name != KD_AT_BETA}


def calibration(answers: Answers, bins: int = 15) -> dict[str, Calibration]:
    """Of each predictor."""
    labels = answers.labels
    return {
        name: Calibration(
            top_1=100 * accuracy(p, labels),
            top_5=100 * top_k_accuracy(p, labels, TOP) if p.shape[1] > TOP else math.nan,
            confidence=100 * mean_confidence(p),
            ece=(found := reliability(p, labels, bins)).error,
            nll=negative_log_likelihood(p, labels),
            brier=brier_score(p, labels),
            bins=found,
        )
        for name, p in predictors(answers)
    }


def check_same_images(answers: Answers, other: Answers, name: str) -> None:
    """Refuse to compare answers about different images.

    Args:
        name: of the other run.

    Raises:
        UsageError: they have other labels or classes.
    """
    if answers.classes != other.classes or not answers.labels.equal(other.labels):
        raise UsageError(
            f"{name} answers for {len(other.labels):,} {other.split} images of {len(other.classes):,} classes, and the "
            f"run for {len(answers.labels):,} others of {len(answers.classes):,}: compare runs on one dataset"
        )


def calibration_section(found: Sequence[Mapping[str, Calibration]], column: str) -> Section:
    """Of the runs of one row.

    Args:
        found: see calibration, of each run. column: the set, with the caveats of its results.
    """
    measured = [{name: _calibration_values(one) for name, one in run.items()} for run in found]
    bins = len(next(iter(found[0].values())).bins.images)
    text = (
        f"Confidence is the mean of the highest probability. ECE has {bins} bins of equal width and is biased upward "
        "where they hold few images. The KD head's own probabilities are those at beta 1; where beta is another, or "
        "was searched, those that Eq. 11 mixes stand beside them.",
    )
    tables = (values_table(f"on {column}", measured),)
    return Section("calibration", "Confidence and calibration (Fig. 15)", tables, text, details(measured))


def _calibration_values(one: Calibration) -> dict[str, float]:
    shown = {
        "top-1, %": one.top_1,
        "top-5, %": one.top_5,
        "confidence, %": one.confidence,
        "ECE": one.ece,
        "NLL, nats": one.nll,
        "Brier, of 2": one.brier,
    }
    return {name: value for name, value in shown.items() if not math.isnan(value)}
