"""What the alpha-beta control shows: each set of each run with two heads, as far as it is there and fits."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..analysis.alpha_beta import AccuracyMap, marked_points
from ..interpolation import ALPHA_GRID, BETA_GRID
from .asking import Asking, two_heads
from .collect import Problem, Run
from .comparison import Comparison
from .control import Explored
from .slider import packed, slider

SET_BYTES, PAGE_BYTES = 10 * 2**20, 40 * 2**20  # of data in a page, for one set and for all


def explore(comparisons: Sequence[Comparison], asking: Asking) -> list[Explored]:
    """All sets of all finished runs with two heads; what does not fit is added to the problems."""
    found = [explored for name, run in two_heads(comparisons) for explored in of_run(name, run, asking)]
    return fitting(found, asking.problems)


def of_run(name: str, run: Run, asking: Asking) -> list[Explored]:
    """The sets of a run."""
    found, validation = [], asking.validation(run)
    for split in asking.sets(run):
        answers = validation if split == "val" else asking.answers(run, split)
        if answers is not None and answers.kd is not None:
            data = slider(answers.logits, answers.labels)
            accuracy = AccuracyMap(ALPHA_GRID, BETA_GRID, 100.0 * (data.hits.double() / data.images))
            points = marked_points(answers, accuracy, validation)
            found.append(Explored(name, run.seed, split, points, json.dumps(packed(data))))
    return found


def fitting(sets: Sequence[Explored], problems: list[Problem]) -> list[Explored]:
    """The sets that fit into a page: test sets of all runs first, then the others; what does not is a problem."""
    left, fits = PAGE_BYTES, set()
    for i in sorted(range(len(sets)), key=lambda i: (sets[i].split != "test", i)):
        size, name = len(sets[i].data), f"{sets[i].row}, seed {sets[i].seed}, {sets[i].split}"
        if size > SET_BYTES:
            problems.append(Problem(name, f"is not in the control: {size / 2**20:.1f} MiB of data"))
        elif size > left:
            problems.append(Problem(name, "is not in the control: the page has as much data as it takes"))
        else:
            left -= size
            fits.add(i)
    return [explored for i, explored in enumerate(sets) if i in fits]
