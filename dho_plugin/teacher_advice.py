"""What a teacher's answers on labelled images say about alpha, beta and zeta, with reasons.

The evidence is scripts/digits.py: two heads beat one by 5.6 points where the teacher's errors are systematic, and lose
4.6 where they are random and 1.4 where there are none on purpose.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .calibration import (
    Concentration,
    accuracy,
    brier_score,
    confusions,
    expected_calibration_error,
    fit_temperature,
    mean_confidence,
    negative_log_likelihood,
    systematic_confusions,
    wilson_interval,
)

BINS = 15
COARSE = 500  # images below which a bin of ECE holds some thirty at most
LEVEL = 0.01  # of the test for systematic errors
FEWEST_ERRORS = 5  # below this nothing is said of their kind
PAYS = 5.0  # points of systematic errors; a second head costs up to 4.6 where there are none
KNOWS = 0.05  # of what lies between guessing and perfect: at or below it the teacher does not know the classes
ENOUGH = 0.9  # lower end of the accuracy at which errors whose kind is unknown are too few to matter
GAP = 0.05  # between confidence and accuracy that is worth a word


class Examination(NamedTuple):
    """A teacher's answers on labelled images. Accuracies are fractions.

    Attributes:
        counts: (C, C) answers by true class, see calibration.confusions. low, high: 95 % interval of the accuracy.
        temperature: the factor on zeta of least NLL, None for none; see calibration.fit_temperature.
    """

    counts: Tensor
    accuracy: float
    low: float
    high: float
    confidence: float
    calibration_error: float
    likelihood: float
    brier: float
    temperature: float | None
    concentration: Concentration

    @property
    def images(self) -> int:
        return int(self.counts.sum())

    @property
    def fewest(self) -> int:
        """Images of the class that has the fewest."""
        return int(self.counts.sum(dim=1).min())

    @property
    def errors(self) -> int:
        return self.images - int(self.counts.trace())

    @property
    def kind(self) -> str:
        """Of the errors: "none", "unclear" (too few to say), "systematic" or "scattered"."""
        if self.errors == 0:
            return "none"
        if self.concentration.errors < FEWEST_ERRORS:
            return "unclear"
        return "systematic" if self.concentration.p_value < LEVEL else "scattered"

    @property
    def systematic_points(self) -> float:
        """Systematic errors beyond chance, in percent of all images; 0 where the errors are not systematic."""
        if self.kind != "systematic":
            return 0.0
        found = self.concentration
        return 100 * (found.share - found.expected) * found.errors / self.images

    @property
    def honesty(self) -> str:
        """Of the confidence: "fits", or "too low" or "too high" for the accuracy's interval and by GAP or more."""
        if self.confidence < min(self.low, self.accuracy - GAP):
            return "too low"
        return "too high" if self.confidence > max(self.high, self.accuracy + GAP) else "fits"


class Advice(NamedTuple):
    """Sentences, and the settings of TRAINER.DHO that they come to, by key."""

    sentences: tuple[str, ...]
    settings: dict[str, float]


def examine(logits: Tensor, labels: Tensor) -> Examination:
    """Look at a teacher's answers.

    Args:
        logits: (N, C), already over zeta. labels: (N,).
    """
    probabilities = logits.double().softmax(dim=-1)
    counts = confusions(logits.argmax(dim=-1), labels, logits.shape[-1])
    return Examination(
        counts,
        accuracy(logits, labels),
        *wilson_interval(int(counts.trace()), len(labels)),
        mean_confidence(probabilities),
        expected_calibration_error(probabilities, labels, BINS),
        negative_log_likelihood(probabilities, labels),
        brier_score(probabilities, labels),
        fit_temperature(logits, labels),
        systematic_confusions(counts),
    )


def percent(fraction: float) -> str:
    """0.8694 -> "86.9 %"."""
    return f"{100 * fraction:.1f} %"


def error_sentences(seen: Examination) -> list[str]:
    """Whether the errors are systematic, in words."""
    found, sentences = seen.concentration, []
    if seen.fewest < 2:
        sentences.append("A class has one image alone: confusions cannot be judged class by class.")
    if seen.kind == "none":
        return [*sentences, "No image is wrong."]
    if seen.kind == "unclear":
        return [
            *sentences,
            f"Too few errors to say whether they are systematic: {found.errors} in classes that have two or more, "
            f"and {FEWEST_ERRORS} are wanted.",
        ]
    return [
        *sentences,
        f"The errors are {seen.kind}: of the {found.errors} errors in classes that have two or more, "
        f"{percent(found.share)} fall on their class's most frequent wrong answer. Were they spread as the other "
        f"classes' wrong answers are, it would be {percent(found.expected)} (p = {found.p_value:.3f}).",
    ]


def advise(seen: Examination, *, zeta: float | None) -> Advice:
    """What to set before a long run.

    Args:
        zeta: the temperature of a zero-shot teacher now; None for a run of ours, whose logits it does not reach.
    """
    chance = 1 / len(seen.counts)
    if seen.accuracy <= chance + KNOWS * (1 - chance):
        said = (
            f"Do not distil: {percent(seen.accuracy)} is hardly above guessing ({percent(chance)}), so the teacher "
            "does not know these classes. Check class names and templates (TRAINER.DHO.TEACHER.TEMPLATES), or take "
            "another teacher."
        )
        return Advice((said,), {})
    if seen.low <= chance:
        said = f"{seen.images} images do not tell the teacher from guessing ({percent(chance)}): give more --shots."
        return Advice((said,), {})
    about_heads, heads = _heads(seen, trained=zeta is None)
    about_zeta, scale = _scale(seen, zeta=zeta)
    return Advice((about_heads, about_zeta), {**heads, **scale})


def _heads(seen: Examination, *, trained: bool) -> tuple[str, dict[str, float]]:
    if seen.kind in ("none", "unclear") and seen.low < ENOUGH:
        return "Alpha and beta: too few images to choose them by. Keep the preset's, or give more --shots.", {}
    points = f"{seen.systematic_points:.1f} %"
    if seen.systematic_points >= PAYS:
        return (
            f"Alpha 0.5 and beta 1: about {points} of the images are wrong in a systematic way, so labels contradict "
            "the teacher consistently, which is where two heads beat one (scripts/digits.py: by 5.6 points). Where "
            "there are validation images, TRAINER.DHO.CHOOSE val searches both.",
            {"ALPHA": 0.5, "BETA": 1.0},
        )
    alpha, kind = (0.2, "few-shot") if trained else (0.4, "zero-shot")
    why = {
        "none": "no error was seen",
        "unclear": "few errors were seen",
        "scattered": "the teacher's errors follow no system",
        "systematic": f"the errors are systematic, but only about {points} of the images, and mending them all gains "
        "no more than that",
    }[seen.kind]
    return (
        f"A small alpha (the paper's {alpha} with beta 0.5 for {kind} teachers): {why}. One head (trainers KD, CEKD) "
        "may be as good or better: without systematic errors scripts/digits.py has two heads 1.4 to 4.6 points behind.",
        {"ALPHA": alpha, "BETA": 0.5},
    )


def _scale(seen: Examination, *, zeta: float | None) -> tuple[str, dict[str, float]]:
    said = f"Confidence ({percent(seen.confidence)}) "
    if seen.honesty == "fits":
        return said + "fits the accuracy: keep the temperature.", {}
    said += f"is {seen.honesty} for the accuracy ({percent(seen.accuracy)})"
    factor = seen.temperature
    if factor is None or (seen.honesty == "too low") != (factor < 1):
        return said + ", but the likelihood does not ask for a temperature on that side: keep it.", {}
    if zeta is None:
        return (
            said + f": divided by {factor:.2f} its logits fit these labels best, but zeta does not reach a run's.",
            {},
        )
    wanted = float(f"{zeta * factor:.2g}")
    return (
        f"{said}: a {'lower' if factor < 1 else 'higher'} zeta, {wanted:g} instead of {zeta:g}, fits these labels "
        "best. It is the temperature of a cosine KD head too.",
        {"ZETA": wanted},
    )
