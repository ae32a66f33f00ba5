"""The figures of a page: drawn once, saved beside it as SVG and PNG, and set into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..analysis import conflict_figure, conflict_log, drawing
from ..analysis import heads as analysis
from ..analysis.examined import Examined
from ..analysis.over_seeds import Section
from ..errors import UsageError
from ..tables.cells import folder_name
from .asking import Asking, two_heads
from .collect import Run
from .comparison import Comparison
from .curves import curves_figure
from .inline import Picture, inline

CAPTIONS = {
    "map": "Mean over the seeds at each point of the grid, and where alpha and beta were chosen.",
    "ablation": "Whiskers are the deviation over seeds. The hollow bar is an oracle, no result.",
    "agreement": "Left: images by which head is right. Right: where one head fails, how often both combined still do.",
    "confidence": "How many images are answered with which highest probability.",
    "reliability": "Accuracy by confidence; on the diagonal a model is as often right as it is sure.",
    "per_class": "The classes that gain and lose most.",
    "retention": "From the test set to each shift; numbers are what is left of the test set's accuracy.",
}
CONFLICT = (
    "Agreement of the gradients of L_CE and L_KD in the course of training: below zero they pull the shared "
    "parameters, or the features, in opposite directions. Lines are means over seeds, bands their deviation."
)
LINES = 2  # of conflict.csv, of which a curve can be drawn


class OfRow(NamedTuple):
    """What the heads of a row come to.

    Attributes:
        name: of its files. title: of the row.
        notes: what each run was asked about, and what was left out, in sentences.
        sections: each with its figures, if there are any.
    """

    name: str
    title: str
    notes: Sequence[str]
    sections: Sequence[tuple[Section, Sequence[Picture]]]


class Drawn(NamedTuple):
    """What is drawn; curves by title of comparison. note: where the files are, or why there are none."""

    heads: list[OfRow]
    curves: dict[str, list[Picture]]
    conflict: list[Picture]
    note: str


def draw(comparisons: Sequence[Comparison], folder: Path, asking: Asking) -> Drawn:
    """All figures; without matplotlib the numbers of the heads alone, and a note says so."""
    rows = rows_of(comparisons)
    try:
        drawing.check_installed()
    except UsageError as error:
        heads = [of_row(i, *row, None, asking) for i, row in enumerate(rows)]
        return Drawn([found for found in heads if found], {}, [], f"There are no figures: {error}.")
    with drawing.styled():
        heads = [of_row(i, *row, folder, asking) for i, row in enumerate(rows)]
        curves = {one.title: of_training(i, one, folder) for i, one in enumerate(comparisons)}
        conflict = [of_conflict(i, one, folder) for i, one in enumerate(comparisons)]
    return Drawn(
        [found for found in heads if found],
        {title: pictures for title, pictures in curves.items() if pictures},
        [picture for picture in conflict if picture],
        f"The figures are in {folder.name}/ beside this page too, as SVG and PNG.",
    )


def picture(figure: Any, folder: Path, name: str, title: str, caption: str) -> Picture:
    """A figure for the page, which is saved too."""
    drawing.save(figure, folder / name)
    return Picture(name, title, caption, inline(figure, name, f"{title}. {caption}"))


def rows_of(comparisons: Sequence[Comparison]) -> list[tuple[str, list[Run], list[Run]]]:
    """The runs of each row with two heads, one for each seed, by the row's name; and of its first control, if any."""
    found: dict[str, dict[int, Run]] = {}
    controls: dict[Path, Run] = {}
    for name, run in two_heads(comparisons):
        found.setdefault(name, {})[run.seed] = run
    for comparison in comparisons:
        for row, control in reversed(comparison.pairs):
            theirs = {
                (run.seed, run.labels): run for run in comparison.rows[control] if run.manifest and run.accuracies
            }
            controls |= {
                run.folder: theirs[run.seed, run.labels]
                for run in comparison.rows[row]
                if (run.seed, run.labels) in theirs
            }
    return [
        (name, list(runs.values()), [controls[run.folder] for run in runs.values() if run.folder in controls])
        for name, runs in found.items()
    ]


def of_row(
    number: int, title: str, runs: Sequence[Run], controls: Sequence[Run], folder: Path | None, asking: Asking
) -> OfRow | None:
    """What `heads` makes of the runs of a row; without figures where there is no folder for them."""
    name = f"heads{number}_{folder_name(title)}"
    paired = controls if len(controls) == len(runs) else [None] * len(runs)
    found = [one for run, control in zip(runs, paired, strict=True) if (one := asking.examined(run, control))]
    parts = asking.tried(runs[0], "its row's heads", lambda: sections_of(name, found, folder)) if found else None
    notes = dict.fromkeys(note for one in found for note in (one.said, *one.notes))
    return OfRow(name, title, list(notes), parts) if parts else None


def sections_of(name: str, found: Sequence[Examined], folder: Path | None) -> list[tuple[Section, Sequence[Picture]]]:
    """The sections of `heads`, each with its figures."""
    figures = analysis.figures(found) if folder is not None else {}
    parts: list[tuple[Section, Sequence[Picture]]] = []
    for section in analysis.sections(found):
        below = [part for part in analysis.BELOW.get(section.name, (section.name,)) if part in figures]
        files = {part: f"{name}_{part}" for part in below}
        shown = [picture(figures[part], folder, files[part], "", CAPTIONS[part]) for part in below if folder]
        parts.append((section, shown))
    return parts


def of_training(number: int, comparison: Comparison, folder: Path) -> list[Picture]:
    """The training curves of each row."""
    shown = []
    for title, runs in comparison.groups().items():
        figure = curves_figure([run.folder for run in runs if run.manifest])
        if figure is not None:
            seeds = ", ".join(str(run.seed) for run in runs)
            over = f"seeds {seeds}; the band spans the seeds" if len(runs) > 1 else f"seed {seeds}"
            caption = f"Means over the epoch so far, {over}."
            shown.append(picture(figure, folder, f"curves{number}_{folder_name(title)}", title, caption))
    return shown


def of_conflict(number: int, comparison: Comparison, folder: Path) -> Picture | None:
    """The gradient conflict of the rows that were looked at; None for none."""
    runs = [
        conflict_figure.Run(comparison.dataset, row, run.seed, lines)
        for row, own in comparison.groups().items()
        for run in own
        if len(lines := conflict_log.read(run.folder)) >= LINES
    ]
    rows = list(dict.fromkeys(run.row for run in runs))[: len(drawing.PALETTE)]
    if not rows:
        return None
    figure = conflict_figure.draw([run for run in runs if run.row in rows], rows)
    return picture(figure, folder, f"conflict{number}", comparison.title, CONFLICT)
