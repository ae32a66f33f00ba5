"""How much of the accuracy on the test set is left on each shift of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..manifest import called
from .over_seeds import Section, Values, details, in_percent, values_table
from .predictors import CONTROL

Accuracies = Mapping[str, float]
"""In percent by the name of a set, of which "test" is one."""


def retained(accuracy: Accuracies) -> dict[str, float]:
    """Accuracy on each shift over that on the test set, in percent.

    A shift that has fewer classes asks an easier question than the test set, so that more than 100 may be left.
    """
    base = accuracy.get("test", 0.0)
    return {name: 100 * value / base if base else math.nan for name, value in accuracy.items() if name != "test"}


def beyond(accuracy: Accuracies, control: Accuracies) -> dict[str, float]:
    """What is retained minus what a control retains, in points, on the shifts that both were asked about."""
    kept, theirs = retained(accuracy), retained(control)
    return {name: value - theirs[name] for name, value in kept.items() if name in theirs}


def retention_section(found: Sequence[Mapping[str, Accuracies]], caveats: Sequence[str] = ()) -> Section:
    """Accuracy on the test set and its shifts, what is left of it there, and how much more than of a control.

    Args:
        found: accuracies by predictor, CONTROL among them if there is one, of each run. caveats: of these results.
    """
    plain = [in_percent(one) for one in found]
    kept = [in_percent({row: retained(sets) for row, sets in one.items()}) for one in found]
    tables, text = [values_table(called("top-1", caveats), plain)], []
    if any(kept[0].values()):
        tables.append(values_table(called("left of the test set's", caveats), kept))
        text.append(
            "What is left is accuracy on a shift over accuracy on the test set; a shift that has fewer classes asks an "
            "easier question."
        )
    else:
        text.append("No shift of this dataset was looked at.")
    if CONTROL in found[0] and any(kept[0].values()):
        more = [_more(one) for one in found]
        tables.append(values_table(called("left beyond the control's", caveats), more))
    joined = [
        {**{f"{row}, top-1": sets for row, sets in one.items()}, **{f"{row}, left": sets for row, sets in two.items()}}
        for one, two in zip(plain, kept, strict=True)
    ]
    return Section("retention", "What is left on shifts", tuple(tables), tuple(text), details(joined))


def _more(accuracy: Values) -> Values:
    rows = {row: beyond(sets, accuracy[CONTROL]) for row, sets in accuracy.items() if row != CONTROL}
    return {row: {f"{column}, points": value for column, value in columns.items()} for row, columns in rows.items()}
