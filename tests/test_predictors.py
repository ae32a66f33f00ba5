"""Who predicts, against Eq. 11 in loops; calibration against other libraries."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from made_answers import made, one_head

from dho_plugin.analysis.predictors import (
    CE,
    KD,
    KD_AT_BETA,
    SINGLE,
    accuracies,
    calibration,
    calibration_section,
    check_same_images,
    combined,
    predictions,
    predictors,
)
from dho_plugin.errors import UsageError


def test_each_predictor_against_the_formula():
    answers = made(12, 5)
    found = dict(predictors(answers))
    assert list(found) == [CE, KD, KD_AT_BETA, "combined (fixed)"]
    for p, at in zip(found.values(), ((1.0, 1.0), (0.0, 1.0), (0.0, 0.5), (0.4, 0.5)), strict=True):
        torch.testing.assert_close(p, reference.interpolation(answers.ce, answers.kd, *at), rtol=0, atol=1e-12)


def test_the_kd_head_stands_once_where_beta_is_fixed_at_one():
    assert KD_AT_BETA not in dict(predictors(made(beta=1.0)))
    assert KD_AT_BETA in dict(predictors(made(beta=1.0, chosen="val")))  # of another seed it may be another


@pytest.mark.parametrize("chosen", ["fixed", "val", "oracle"])
def test_the_combination_says_who_chose_alpha_and_beta(chosen):
    *_, name = dict(predictors(made(chosen=chosen)))
    assert name == combined(chosen) and ("oracle" in name) == (chosen == "oracle")


def test_one_head_is_one_predictor():
    answers = one_head(made())
    found = dict(predictors(answers))
    assert list(found) == [SINGLE] and torch.equal(found[SINGLE], answers.ce.softmax(dim=-1))


def test_accuracies_against_loops():
    answers = made()
    for name, predicted in predictions(answers).items():
        right = sum(int(p) == int(y) for p, y in zip(predicted, answers.labels, strict=True))
        assert accuracies(answers)[name] == pytest.approx(100 * right / 60)


def test_calibration_against_scikit_learn_and_torchmetrics():
    metrics = pytest.importorskip("sklearn.metrics")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    answers = made(300)
    found = calibration(answers, bins=10)
    for name, p in predictors(answers):
        one = found[name]
        assert one.nll == pytest.approx(metrics.log_loss(answers.labels, p))
        assert one.top_1 == pytest.approx(100 * metrics.accuracy_score(answers.labels, p.argmax(dim=-1)))
        assert one.top_5 == pytest.approx(100 * metrics.top_k_accuracy_score(answers.labels, p, k=5))
        assert one.brier == pytest.approx(((p - torch.eye(7)[answers.labels]) ** 2).sum(dim=1).mean().item())
        error = functional.multiclass_calibration_error(p, answers.labels, num_classes=7, n_bins=10, norm="l1")
        assert one.ece == one.bins.error == pytest.approx(error.item(), abs=1e-6)
        assert one.confidence == pytest.approx(100 * p.max(dim=-1).values.mean().item())


def test_few_classes_have_no_top_five():
    found = [calibration(made(20, 4, seed)) for seed in (0, 1)]
    assert all(math.isnan(one.top_5) for one in found[0].values())
    (table,) = calibration_section(found, "test").tables
    assert table.header == ("on test", "top-1, %", "confidence, %", "ECE", "NLL, nats", "Brier, of 2")
    assert [line[0] for line in table.lines] == [CE, KD, KD_AT_BETA, "combined (fixed)"]


def test_other_images_are_not_compared():
    check_same_images(made(), one_head(made()), "the control")
    for other in (made(59), made(seed=1), made()._replace(classes=("other",) * 7)):
        with pytest.raises(UsageError, match=r"the control answers for .* compare runs on one dataset"):
            check_same_images(made(), other, "the control")
