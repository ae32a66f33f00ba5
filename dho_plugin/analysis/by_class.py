"""Gains and losses class by class: the combination against each head, and against a control run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..predicting import printable
from ..tables.summary import Table
from .answers import Answers
from .over_seeds import Section, Values, details, values_table
from .predictors import CONTROL, check_same_images, predictions

SHOWN = 10  # classes at either end of a difference that are shown


class ByClass(NamedTuple):
    """Accuracy by class.

    Attributes:
        names: of the C classes. images: int64 (C,), how many a class has. accuracy: float64 (C,) in percent for each
            predictor, the run's own answer last; nan for a class without images. control: the control run's, if any.
    """

    names: tuple[str, ...]
    images: Tensor
    accuracy: dict[str, Tensor]
    control: Tensor | None

    def differences(self) -> dict[str, Tensor]:
        """The run's own answer minus each head's, and minus the control's, in points (C,)."""
        *others, own = self.accuracy
        found = {f"{own} minus {other}": self.accuracy[own] - self.accuracy[other] for other in others}
        return found if self.control is None else {**found, f"{own} minus {CONTROL}": self.accuracy[own] - self.control}


def by_class(answers: Answers, control: Answers | None = None) -> ByClass:
    """Accuracies by class.

    Args:
        control: another run's answers about the same images.

    Raises:
        UsageError: they are about other images.
    """
    images = torch.bincount(answers.labels, minlength=len(answers.classes))

    def accuracy(predicted: Tensor) -> Tensor:
        right = torch.bincount(answers.labels[predicted.eq(answers.labels)], minlength=len(images))
        return 100 * right.double() / images

    found = {name: accuracy(predicted) for name, predicted in predictions(answers).items()}
    if control is None:
        return ByClass(answers.classes, images, found, None)
    check_same_images(answers, control, "the control")
    *_, theirs = predictions(control).values()
    return ByClass(answers.classes, images, found, accuracy(theirs))


def by_class_section(found: Sequence[ByClass], column: str) -> Section:
    """Of the runs of one row; the classes at either end are shown, all of them are in the CSV.

    Args:
        column: the set, with the caveats of its results.
    """
    names = class_names(found[0])
    measured = [_class_values(one, names) for one in found]
    totals = [_totals(one) for one in found]
    low, high = int(found[0].images.min()), int(found[0].images.max())
    text = [f"{low:,}{f' to {high:,}' if high > low else ''} images a class; the macro average counts each class once."]
    tables: tuple[Table, ...] = ()
    if totals[0]:
        *_, (difference, shown) = ends(found).items()
        rows = [{row: _points(one[row]) for row in shown} for one in measured]
        tables = (values_table(f"over classes, {column}", totals), values_table(f"class, by {difference}", rows))
        if len(shown) < len(names):
            text.append(f"{len(shown)} of {len(names):,} classes are shown, from both ends; all are in per_class.csv.")
    return Section("per_class", "Gains and losses by class", tables, tuple(text), details(measured))


def ends(found: Sequence[ByClass], count: int = SHOWN) -> dict[str, dict[str, float]]:
    """For each difference its points (mean over runs) by class, the greatest gain first, of the classes at either end.

    Classes without images are in none.

    Args:
        count: classes at each end.
    """
    names, shown = class_names(found[0]), {}
    of_runs = [one.differences() for one in found]
    for difference in of_runs[0]:
        means = torch.stack([one[difference] for one in of_runs]).mean(dim=0).tolist()
        known = [(name, value) for name, value in zip(names, means, strict=True) if not math.isnan(value)]
        ordered = sorted(known, key=lambda pair: -pair[1])
        shown[difference] = dict(ordered if len(ordered) <= 2 * count else [*ordered[:count], *ordered[-count:]])
    return shown


def class_names(classes: ByClass) -> list[str]:
    """Names on one line; with the label where two classes share one."""
    names = [printable(name) for name in classes.names]
    return [name if names.count(name) == 1 else f"{name} (label {label})" for label, name in enumerate(names)]


def _class_values(one: ByClass, names: Sequence[str]) -> Values:
    columns = {"images": one.images, **{f"{name}, %": values for name, values in one.accuracy.items()}}
    if one.control is not None:
        columns[f"{CONTROL}, %"] = one.control
    columns |= {f"{name}, points": values for name, values in one.differences().items()}
    listed = {column: values.tolist() for column, values in columns.items()}
    return {name: {column: values[c] for column, values in listed.items()} for c, name in enumerate(names)}


def _points(row: Mapping[str, float]) -> dict[str, float]:
    """Images and differences alone, for a table that a page is wide enough for."""
    return {column: value for column, value in row.items() if column == "images" or "points" in column}


def _totals(one: ByClass) -> Values:
    rows = {}
    for name, values in one.differences().items():
        there = values[one.images > 0]
        signs = {"gained": there > 0, "lost": there < 0, "equal": there == 0}
        rows[name] = {"macro average, points": there.mean().item()}
        rows[name] |= {f"{sign}, % of classes": 100 * found.double().mean().item() for sign, found in signs.items()}
    return rows
