"""The accuracy at each alpha and beta (Fig. 10), and the points of that map that somebody chose."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..interpolation import ALPHA_GRID, BETA_GRID, AlphaBeta, accuracy_grid, best_point
from ..manifest import labeled_part, read
from ..pool import check_validation, copy_policy
from ..runs import run_config, run_dataset
from ..tables.summary import Table, mean_and_deviation
from .answers import Answers, answers_of
from .over_seeds import Section
from .predictors import CHOSEN

PURPOSE = "alpha and beta on validation images"


class AccuracyMap(NamedTuple):
    """Accuracy in percent (alphas, betas), float64."""

    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    accuracy: Tensor

    def best(self) -> AlphaBeta:
        """Where a search on these images would end, which on test images is an oracle."""
        return best_point(self.accuracy, self.alphas, self.betas)


class Point(NamedTuple):
    """An alpha and beta that somebody chose.

    Attributes:
        source: one of interpolation.SOURCES. own: whether the run answers with it. accuracy: in percent, on the images
            at hand, whichever they were chosen on.
    """

    alpha: float
    beta: float
    source: str
    own: bool
    accuracy: float


def accuracy_map(
    answers: Answers, alphas: tuple[float, ...] = ALPHA_GRID, betas: tuple[float, ...] = BETA_GRID
) -> AccuracyMap:
    """The map of a set; at the grid's default the one that interpolation.search_alpha_beta looks at.

    Raises:
        UsageError: there is one head.
    """
    return AccuracyMap(alphas, betas, accuracy_grid(answers.logits, answers.labels, alphas=alphas, betas=betas))


def mean_map(maps: Sequence[AccuracyMap]) -> AccuracyMap:
    """The mean of maps on one grid."""
    return maps[0]._replace(accuracy=torch.stack([found.accuracy for found in maps]).mean(dim=0))


def marked_points(answers: Answers, of_set: AccuracyMap, validation: Answers | None) -> tuple[Point, ...]:
    """The run's own point, that of a search on validation images, and the oracle, which searches the set itself.

    Where the run has chosen in one of these ways itself its own point stands for it. On validation images there is no
    oracle; the search has seen them.

    Args:
        of_set: the map of the answers. validation: see validation_of; None for none.

    Raises:
        UsageError: there is one head.
    """
    own = answers.chosen
    found = {own: (answers.alpha, answers.beta)}
    if validation is not None and own != "val":
        found["val"] = accuracy_map(validation, of_set.alphas, of_set.betas).best()[:2]
    if answers.split != "val" and own != "oracle":
        found["oracle"] = of_set.best()[:2]
    return tuple(Point(*at, source, source == own, accuracy_at(answers, *at)) for source, at in found.items())


def accuracy_at(answers: Answers, alpha: float, beta: float) -> float:
    """In percent, at any alpha and beta."""
    return accuracy_grid(answers.logits, answers.labels, alphas=(alpha,), betas=(beta,)).item()


def validation_of(run: str | Path, *, root: str = "") -> Answers:
    """A run's answers about its validation images, on which alpha and beta may be searched.

    Args:
        root: see answers_of.

    Raises:
        UsageError: there are none; they are test images or labelled ones (see pool.check_validation); those of now are
            not those of the run's manifest.
    """
    folder = Path(run).expanduser()
    changes = {"VERBOSE": False, **({"DATASET.ROOT": root} if root else {})}
    cfg = run_config(folder, changes)
    with redirect_stdout(io.StringIO()):
        dataset = run_dataset(folder, changes)
    check_validation(dataset, PURPOSE, copies=copy_policy(cfg))
    now = labeled_part(dataset.val, cfg.DATASET.ROOT)
    then = read(folder).get("validation", now)
    if now["sha256"] != then["sha256"]:
        raise UsageError(
            f"{PURPOSE}: the run had {then['images']:,}, and the {now['images']:,} of now are "
            "others: has the dataset been changed, or had the run no seed?"
        )
    return answers_of(folder, "val", root=root)


def map_section(maps: Sequence[AccuracyMap], marked: Sequence[Sequence[Point]], column: str) -> Section:
    """Where the points of each run lie, and what they are worth; and the mean map.

    Args:
        column: the set, with the caveats of its results.
    """
    lines = []
    for source in dict.fromkeys(point.source for points in marked for point in points):
        points = [point for of_run in marked for point in of_run if point.source == source]
        at = ", ".join(dict.fromkeys(f"{point.alpha:g} and {point.beta:g}" for point in points))
        lines.append((CHOSEN[source], at, mean_and_deviation([point.accuracy for point in points])))
    whole = mean_map(maps)
    grid = [
        (f"{alpha:g}", f"{beta:g}", f"{value:.6g}")
        for alpha, of_alpha in zip(whole.alphas, whole.accuracy.tolist(), strict=True)
        for beta, value in zip(whole.betas, of_alpha, strict=True)
    ]
    text = (
        "Fixed is the configuration's point. A search takes the best of the grid, of equal ones that nearest to alpha "
        "0.5, then to beta 1: on the declared validation images, or, as an oracle, on the very images of this map, "
        "which is a bound and no result.",
    )
    tables = (Table(("point", "alpha and beta", f"top-1 on {column}, %"), tuple(lines)),)
    csv = Table(("alpha", "beta", f"top-1 on {column}, %"), tuple(grid))
    return Section("map", "Accuracy by alpha and beta (Fig. 10)", tables, text, csv)
