"""One training, answered by either head alone and by both (Fig. 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..tables.command import star
from ..tables.summary import Record, differences_table
from .alpha_beta import Point, accuracy_at
from .answers import Answers
from .over_seeds import Section, details, values_table
from .predictors import CE, KD, combined


def ablation(answers: Answers, points: Sequence[Point]) -> dict[str, float]:
    """Accuracy in percent of each head alone, where alpha is 1 or 0, and of the combination at each point (Fig. 8).

    Raises:
        UsageError: there is one head.
    """
    alone = {name: accuracy_at(answers, alpha, answers.beta) for name, alpha in ((CE, 1.0), (KD, 0.0))}
    return {**alone, **{combined(point.source): point.accuracy for point in points}}


def ablation_section(found: Sequence[Mapping[str, float]], seeds: Sequence[int], column: str) -> Section:
    """With paired differences over runs.

    Args:
        found: see ablation, of each run. column: the set, with the caveats of its results.
    """
    column = f"top-1 on {column}, %"
    measured = [{row: {column: value} for row, value in rows.items()} for rows in found]
    records = [
        Record(row, column, seed, value) for rows, seed in zip(found, seeds, strict=True) for row, value in rows.items()
    ]
    _, _, own, *others = measured[0]
    pairs = [(own, CE), (own, KD), *((other, own) for other in others if other != combined("oracle"))]
    tables = (values_table("answer", measured), differences_table(records, pairs, [column]))
    text = (
        "One training, asked with alpha 1, alpha 0, and at the points of the map. The oracle was chosen on the images "
        f"that it is measured on, so that it can only be above the others. {star(records)}",
    )
    return Section("ablation", "One head and both (Fig. 8)", tables, text, details(measured))
