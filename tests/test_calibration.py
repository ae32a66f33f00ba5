"""Metrics against loops in float64 and against scikit-learn; the test of systematic errors on synthetic answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dho_plugin.calibration import (
    Reliability,
    accuracy,
    brier_score,
    confusions,
    expected_calibration_error,
    fit_temperature,
    mean_confidence,
    negative_log_likelihood,
    reliability,
    systematic_confusions,
    top_k_accuracy,
    wilson_interval,
)


def example(n: int = 60, c: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits in float64 and labels that they tell something of."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, c, (n,), generator=generator)
    logits = torch.randn(n, c, dtype=torch.float64, generator=generator)
    return logits + 1.5 * torch.nn.functional.one_hot(labels, c), labels


def rows(n: int = 60, c: int = 4) -> list[tuple[list[float], int]]:
    logits, labels = example(n, c)
    return list(zip(logits.softmax(dim=-1).tolist(), labels.tolist(), strict=True))


def test_means_against_loops():
    logits, labels = example()
    p = logits.softmax(dim=-1)
    pairs = rows()
    n = len(pairs)
    assert accuracy(p, labels) == pytest.approx(sum(max(q) == q[y] for q, y in pairs) / n)
    assert mean_confidence(p) == pytest.approx(sum(max(q) for q, _ in pairs) / n)
    assert negative_log_likelihood(p, labels) == pytest.approx(sum(-math.log(q[y]) for q, y in pairs) / n)
    squares = [sum((q[c] - (c == y)) ** 2 for c in range(4)) for q, y in pairs]
    assert brier_score(p, labels) == pytest.approx(sum(squares) / n)


@pytest.mark.parametrize("bins", [15, 4])
def test_calibration_error_against_loops(bins):
    logits, labels = example()
    expected = 0.0
    for b in range(bins):
        inside = [(max(q), max(q) == q[y]) for q, y in rows() if b / bins < max(q) <= (b + 1) / bins]
        if inside:
            size = len(inside)
            gap = sum(right for _, right in inside) / size - sum(confidence for confidence, _ in inside) / size
            expected += size / len(labels) * abs(gap)
    assert expected_calibration_error(logits.softmax(dim=-1), labels, bins) == pytest.approx(expected)


def test_calibration_error_by_hand_at_the_edge_of_a_bin():
    p = torch.tensor([[0.5, 0.5], [0.7, 0.3], [1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0])
    # two bins: 0.5 lies in the lower one (right), 0.7 (wrong) and 1.0 (right) in the upper one
    assert expected_calibration_error(p, labels, bins=2) == pytest.approx((0.5 + 0.7) / 3)


def test_bins_of_confidence_by_hand():
    p = torch.tensor([[0.5, 0.5], [0.7, 0.3], [1.0, 0.0], [0.4, 0.6]], dtype=torch.float64)
    found = reliability(p, torch.tensor([0, 1, 0, 1]), bins=4)
    assert found.images.tolist() == [0, 1, 2, 1] and found.right.tolist() == [0, 1, 1, 1]
    assert found.confidence.tolist() == pytest.approx([0, 0.5, 1.3, 1])
    assert found.accuracy[1:].tolist() == [1, 0.5, 1] and math.isnan(found.accuracy[0])
    assert found.mean_confidence[1:].tolist() == pytest.approx([0.5, 0.65, 1])
    assert found.error == pytest.approx((0.5 + 0.3 + 0) / 4)


def test_bins_of_several_sets_are_those_of_all_their_images():
    logits, labels = example()
    p = logits.softmax(dim=-1)
    parts = [reliability(p[:20], labels[:20]), reliability(p[20:], labels[20:])]
    for mine, wanted in zip(Reliability.pooled(parts), reliability(p, labels), strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("bins", [15, 10])
def test_against_torchmetrics(bins):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = example(400, 7)
    p = logits.softmax(dim=-1)
    error = functional.multiclass_calibration_error(p, labels, num_classes=7, n_bins=bins, norm="l1")
    assert expected_calibration_error(p, labels, bins) == pytest.approx(error.item(), abs=1e-6)
    for k in (1, 3, 5):
        theirs = functional.multiclass_accuracy(p, labels, num_classes=7, top_k=k, average="micro")
        assert top_k_accuracy(p, labels, k) == pytest.approx(theirs.item(), abs=1e-6)
    assert top_k_accuracy(p, labels, 1) == accuracy(p, labels)


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = example()
    p = logits.softmax(dim=-1)
    assert negative_log_likelihood(p, labels) == pytest.approx(metrics.log_loss(labels, p))
    assert accuracy(p, labels) == metrics.accuracy_score(labels, p.argmax(dim=-1))
    assert top_k_accuracy(p, labels, 2) == metrics.top_k_accuracy_score(labels, p, k=2)
    two, of_two = example(c=2)
    q = two.softmax(dim=-1)
    assert brier_score(q, of_two) == pytest.approx(2 * metrics.brier_score_loss(of_two, q[:, 1]))
    counted = confusions(p.argmax(dim=-1), labels, 4)
    assert counted.tolist() == metrics.confusion_matrix(labels, p.argmax(dim=-1)).tolist()


def test_a_probability_of_zero_is_finite_in_either_precision():
    labels = torch.tensor([0])
    for dtype, exponent in ((torch.float32, 126), (torch.float64, 1022)):
        p = torch.tensor([[0.0, 1.0]], dtype=dtype)
        assert negative_log_likelihood(p, labels) == pytest.approx(exponent * math.log(2))


@pytest.mark.parametrize(("right", "total"), [(8, 10), (0, 5), (5, 5), (430, 512)])
def test_wilson_interval_solves_its_equation(right, total):
    for end, inside in zip(wilson_interval(right, total), (right > 0, right < total), strict=True):
        if inside:
            spread = 1.959964 * math.sqrt(end * (1 - end) / total)
            assert abs(right / total - end) == pytest.approx(spread)
        else:
            assert end == pytest.approx(right / total, abs=1e-12)


@pytest.mark.parametrize("scale", [0.2, 1.0, 9.0])
def test_temperature_is_the_least_of_a_fine_grid(scale):
    logits, labels = example(300)
    found = fit_temperature(logits * scale, labels)

    def loss(t: float) -> float:
        return negative_log_likelihood((logits * scale / t).softmax(dim=-1), labels)

    around = [found * 2 ** (i / 1000) for i in range(-2000, 2001)]
    assert min(around, key=loss) == pytest.approx(found, rel=2e-3)
    assert found == pytest.approx(scale * fit_temperature(logits, labels), rel=1e-4)


def test_no_temperature_where_none_is_best():
    labels = torch.arange(4)
    assert fit_temperature(5 * torch.eye(4), labels) is None  # no image is wrong
    assert fit_temperature(-5 * torch.eye(4), labels) is None  # all are


def test_confusions_count_true_by_row():
    counted = confusions(torch.tensor([1, 1, 0, 2]), torch.tensor([0, 0, 0, 2]), 3)
    assert counted.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]


# Synthetic teachers, as tables of K images for each of C classes


def scattered(c: int, k: int, right: float, *, favourites: bool, seed: int) -> Tensor:
    """Errors that know nothing of the true class; with favourites some wrong answers are common (Zipf's law)."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(c)
    if favourites:
        weights = (1 / torch.arange(1.0, c + 1))[torch.randperm(c, generator=generator)]
    labels = torch.arange(c).repeat_interleave(k)
    allowed = weights.repeat(len(labels), 1)
    allowed[torch.arange(len(labels)), labels] = 0
    answers = torch.multinomial(allowed, 1, generator=generator)[:, 0]
    hit = torch.rand(len(labels), generator=generator) < right
    return confusions(torch.where(hit, labels, answers), labels, c)


def systematic(c: int, k: int, pairs: int, *, rate: float, noise: float, mutual: bool, seed: int) -> Tensor:
    """Some classes are called another one at a rate, beside scattered errors."""
    generator = torch.Generator().manual_seed(seed)
    order, to = torch.randperm(c, generator=generator), torch.arange(c)
    to[order[:pairs]] = order[pairs : 2 * pairs]
    if mutual:
        to[order[pairs : 2 * pairs]] = order[:pairs]
    labels = torch.arange(c).repeat_interleave(k)
    anything = torch.randint(0, c, (len(labels),), generator=generator)
    predicted = torch.where(torch.rand(len(labels), generator=generator) < noise, anything, labels)
    predicted = torch.where(torch.rand(len(labels), generator=generator) < rate, to[labels], predicted)
    return confusions(predicted, labels, c)


@pytest.mark.parametrize("favourites", [False, True])
@pytest.mark.parametrize(("c", "k", "right"), [(10, 2, 0.5), (10, 16, 0.9), (32, 8, 0.9), (40, 4, 0.5)])
def test_scattered_errors_give_no_alarm(c, k, right, favourites):
    tables = [scattered(c, k, right, favourites=favourites, seed=seed) for seed in range(100)]
    alarms = sum(systematic_confusions(table, draws=300).p_value < 0.01 for table in tables)
    assert alarms <= 5


@pytest.mark.parametrize(
    ("c", "k", "pairs", "noise", "mutual"),
    [(10, 8, 4, 0.05, False), (10, 8, 3, 0.05, True), (32, 8, 6, 0.1, True), (32, 16, 1, 0.0, False)],
)
def test_systematic_errors_are_found(c, k, pairs, noise, mutual):
    tables = [systematic(c, k, pairs, rate=0.6, noise=noise, mutual=mutual, seed=seed) for seed in range(40)]
    assert sum(systematic_confusions(table, draws=300).p_value < 0.01 for table in tables) >= 38


def test_the_share_by_hand():
    table = torch.tensor([[5, 3, 1, 0], [0, 9, 0, 1], [2, 0, 8, 0], [0, 0, 0, 9]])
    found = systematic_confusions(table)
    assert (found.errors, found.share) == (6, pytest.approx(5 / 6))  # the class with a single error is left out
    # Class 0: weights 0, 1/3, 1/3, 1 + 1/3; class 2: weights 1/3, 3 + 1/3, 0, 1 + 1/3.
    first, third = top_of([1 / 6, 1 / 6, 2 / 3], 4), top_of([1 / 15, 10 / 15, 4 / 15], 2)
    assert found.expected == pytest.approx((first + third) / 6, abs=0.02)
    assert systematic_confusions(torch.eye(3, dtype=torch.int64)).p_value == 1.0


def top_of(weights: list[float], errors: int) -> float:
    """Mean number of errors on the most frequent answer, over every sequence of answers."""
    total = 0.0
    for code in range(len(weights) ** errors):
        answers = [code // len(weights) ** i % len(weights) for i in range(errors)]
        total += math.prod(weights[a] for a in answers) * max(answers.count(a) for a in answers)
    return total
