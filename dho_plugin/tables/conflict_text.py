"""What the figure of the gradient conflict shows, in words and numbers: the last quarter of each training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from ..analysis.conflict_figure import Run, window
from ..analysis.conflict_log import MEASURES, Observation
from . import summary
from .summary import Record, Table

LATE = 0.75  # of the steps of a training, after which it is late
NAMES = {
    "cosine": "cosine, shared parameters",
    "inner_product": "inner product, shared parameters",
    "feature_cosine": "cosine, features",
    "feature_inner_product": "inner product, features",
    "discrepancy": "prediction discrepancy",
    "ce_eigenvalue": "eigenvalue of W Wᵀ, CE head",
    "kd_eigenvalue": "eigenvalue of W Wᵀ, KD head",
    "singular_value": "singular value, W of CE times Wᵀ of KD",
    "eigenvalue": "eigenvalue of the same, modulus",
}
ACCURACY = "top-1 on the test set, %"
# What the paper says of the cosine over the shared parameters, late in training.
CLAIMS = {"CEKD": "below", "StudentDHO": "above"}


def late_lines(run: Run) -> list[Observation]:
    """The observations of the last quarter of a training."""
    return [line for line in run.lines if line.step > LATE * run.lines[-1].step]


def late(run: Run, measure: str) -> float:
    """The mean of a measure there, over the observations that have it; nan for none."""
    known = [value for value in (getattr(line, measure) for line in late_lines(run)) if not math.isnan(value)]
    return mean(known) if known else math.nan


def late_records(runs: Sequence[Run]) -> list[Record]:
    """Late values as the cells of a table, with the measures for columns, and accuracies; nan is left out."""
    found = [Record(run.row, name, run.seed, late(run, name)) for run in runs for name in MEASURES]
    found += [Record(run.row, ACCURACY, run.seed, run.accuracy) for run in runs]
    return [record for record in found if not math.isnan(record.accuracy)]


def late_table(runs: Sequence[Run], rows: Sequence[str]) -> Table:
    """Late values of a data set: one line for each measure and row, one column for each seed."""
    records, seeds = late_records(runs), sorted({run.seed for run in runs})
    lines = []
    for name in (*MEASURES, ACCURACY):
        for row in rows:
            values = summary.accuracies(records, row, name)
            shown = [f"{values[seed]:.3g}" if seed in values else "-" for seed in seeds]
            lines.append((NAMES.get(name, name), row, *shown, spread(list(values.values()))))
    return Table(("last quarter of training", "trainer", *(f"seed {seed}" for seed in seeds), "mean"), tuple(lines))


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Mean and sample deviation in words."""
    if not values:
        return "-"
    deviation = f" ±{stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{deviation}"


def verdict(runs: Sequence[Run], row: str) -> str:
    """Whether the late cosine over the shared parameters of a row is what the paper says of it."""
    own = [run for run in runs if run.row == row]
    values = [value for value in (late(run, "cosine") for run in own if run.lines) if not math.isnan(value)]
    if not values:
        return f"{row}: no parameter is shared by an L_CE and an L_KD, so that nothing can conflict there."
    steps = [line.cosine < 0 for run in own for line in late_lines(run)]
    below = sum(value < 0 for value in values)
    said = (
        f"{row}: the late cosine over the shared parameters is {spread(values, '.2f')}, below zero in {below} of "
        f"{len(values)} runs and in {100 * mean(steps):.0f} % of the late steps looked at."
    )
    if row not in CLAIMS:
        return said
    as_claimed = below if CLAIMS[row] == "below" else len(values) - below
    holds = {0: "in none of them", len(values): "in all of them"}.get(as_claimed, f"in {as_claimed} of them")
    return f"{said} The paper has it {CLAIMS[row]} zero, which is so {holds}."


def apart(runs: Sequence[Run], one: str, other: str) -> str:
    """How far the late cosines over the shared parameters of two rows are apart, paired by seed, over all data sets."""
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    records = [Record(run.row, run.dataset, run.seed, late(run, "cosine")) for run in runs if run.row in (one, other)]
    known = [record for record in records if not math.isnan(record.accuracy)]
    found = summary.difference_over_columns(known, one, dict.fromkeys(datasets, other))
    if math.isnan(found.standard_error):
        return f"{one} minus {other}: too few runs of both for a paired difference."
    clear = "more" if found.clear else "no more"
    return (
        f"{one} minus {other}: {found.mean:+.2f} ±{found.standard_error:.2f} (paired by seed, ± its standard error), "
        f"{clear} than two of these from zero."
    )


def paragraphs(runs: Sequence[Run], rows: Sequence[str]) -> list[str]:
    """What stands below the figure."""
    seen = [run for run in runs if run.lines]
    if not seen:
        return ["No run has an L_CE beside an L_KD to compare."]
    counts = sorted({(run.lines[-1].step, len(run.lines)) for run in seen})
    smooth = "; ".join(f"{count} of {steps} steps, smoothed over {window(count)}" for steps, count in counts)
    found = [
        "Lines are means over the runs of a trainer, bands their sample deviation. Gradients were compared at "
        f"{smooth} by a running mean. The table is not smoothed."
    ]
    datasets = list(dict.fromkeys(run.dataset for run in seen))
    for dataset in datasets:
        own = [run for run in seen if run.dataset == dataset]
        found += [f"## {dataset}"] * (len(datasets) > 1) + [summary.markdown(late_table(own, rows))]
    found.append("± is the sample deviation over seeds; `-`: not defined for this trainer.")
    said = [verdict(runs, row) for row in rows]
    said += [apart(seen, other, rows[0]) for other in rows[1:]]
    return [*found, "\n".join(f"* {line}" for line in said)]


def tidy(runs: Sequence[Run]) -> list[dict[str, object]]:
    """One object for each observation of each run; None for nan, which JSON does not have."""
    return [
        {
            **{"dataset": run.dataset, "trainer": run.row, "seed": run.seed},
            **{name: None if math.isnan(value) else value for name, value in line._asdict().items()},
        }
        for run in runs
        for line in run.lines
    ]


def tidy_table(runs: Sequence[Run]) -> Table:
    """The same as lines of words."""
    lines = [tuple("" if value is None else str(value) for value in line.values()) for line in tidy(runs)]
    return Table(("dataset", "trainer", "seed", *Observation._fields), tuple(lines))
