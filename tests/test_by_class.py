"""Gains and losses by class, against a loop over images."""

from __future__ import annotations

import math

import pytest
import torch
from made_answers import made, one_head

from dho_plugin.analysis.by_class import by_class, by_class_section, class_names, ends
from dho_plugin.analysis.predictors import CE, KD, SINGLE, predictions
from dho_plugin.errors import UsageError


def slow(answers, predicted) -> list[float]:
    found = []
    for c in range(len(answers.classes)):
        rows = [i for i, label in enumerate(answers.labels.tolist()) if label == c]
        found.append(100 * sum(int(predicted[i]) == c for i in rows) / len(rows) if rows else math.nan)
    return found


def test_accuracy_by_class_against_loops():
    answers = made(150)
    answers = answers._replace(labels=answers.labels.clamp(max=5))  # class 6 has no image
    control = one_head(made(150, seed=3))._replace(labels=answers.labels)
    found = by_class(answers, control)
    predicted = predictions(answers)
    assert list(found.accuracy) == [CE, KD, "combined (fixed)"]
    for name, values in found.accuracy.items():
        assert values.tolist() == pytest.approx(slow(answers, predicted[name]), nan_ok=True)
    assert found.control.tolist() == pytest.approx(slow(answers, predictions(control)[SINGLE]), nan_ok=True)
    assert found.images.tolist() == [answers.labels.tolist().count(c) for c in range(7)]
    *_, own = found.accuracy.values()
    differences = found.differences()
    assert list(differences) == [
        "combined (fixed) minus CE head",
        "combined (fixed) minus KD head",
        "combined (fixed) minus control",
    ]
    for (name, values), other in zip(differences.items(), (*found.accuracy.values(), None), strict=False):
        theirs = found.control if name == "combined (fixed) minus control" else other
        torch.testing.assert_close(values, own - theirs, equal_nan=True)
    # Each class counts once, whatever its images; the one without any does not.
    macro = by_class_section([found], "test").tables[0].lines[2]
    assert float(macro[1]) == pytest.approx((own - found.control)[:6].mean().item(), abs=0.05)
    assert "class 6" not in ends([found])["combined (fixed) minus control"]


def test_both_ends_are_shown_and_the_cut_is_said():
    found = [by_class(made(400, 30, seed)) for seed in range(2)]
    shown = ends(found, 4)["combined (fixed) minus CE head"]
    means = torch.stack([one.differences()["combined (fixed) minus CE head"] for one in found]).mean(dim=0)
    assert list(shown.values()) == pytest.approx(
        [*means.sort(descending=True).values.tolist()][:4] + means.sort(descending=True).values.tolist()[-4:]
    )
    section = by_class_section(found, "test")
    assert "20 of 30 classes are shown, from both ends; all are in per_class.csv." in section.text
    assert len(section.tables[1].lines) == 20 and len({line[0] for line in section.details.lines}) == 30


def test_classes_of_one_name_are_told_apart():
    found = by_class(made()._replace(classes=("crane", "a", "b", "crane", "c", "d", "e\n")))
    assert class_names(found) == ["crane (label 0)", "a", "b", "crane (label 3)", "c", "d", "e\\n"]


def test_one_head_alone_has_nothing_to_compare():
    found = by_class(one_head(made()))
    assert found.differences() == {} and by_class_section([found], "test").tables == ()
    assert list(by_class(one_head(made()), made()).differences()) == ["the one head minus control"]


def test_a_control_on_other_images_is_refused():
    with pytest.raises(UsageError, match="compare runs on one dataset"):
        by_class(made(), made(40))
