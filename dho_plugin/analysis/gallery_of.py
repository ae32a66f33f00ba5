"""Images of a finished run by case, read from their files, with what the run's models say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..classes import ClassList
from ..errors import UsageError, check_choice
from ..predicting import printable
from ..runs import run_config
from ..split_record import below
from ..teacher_check import shown_names
from ..views import INTERPOLATIONS, UnreadableImage, center_view, read_image
from .answers import Answers, NoTeacher, answers_of, teacher_of
from .cases import TITLES, TITLES_OF_ONE_HEAD, Card, Case, cards_of, cases_of

SIDE = 256  # pixels of an image at most, as it is kept
CHOSEN = {
    "": "since the CE head alone answers here",
    "fixed": "as configured",
    "val": "searched on validation images",
    "oracle": "searched on the test images, an oracle",
}


class Gallery(NamedTuple):
    """Images of a run, by case.

    Attributes:
        title: of the whole. lead: what the reader has to know, by sentences. names: of the classes, no two the same.
        cases: all of them. shown: cards by the names of the cases that were asked for. images: the square of each that
            a model sees, at most SIDE pixels wide, by the cards' paths.
    """

    title: str
    lead: tuple[str, ...]
    names: Sequence[str]
    cases: Sequence[Case]
    shown: Mapping[str, Sequence[Card]]
    images: Mapping[str, Image.Image]


def gallery_of(
    run: str | Path,
    split: str = "test",
    *,
    wanted: Sequence[str] = (),
    per_case: int = 8,
    top: int = 3,
    root: str = "",
    teacher: bool = True,
) -> Gallery:
    """Choose images of a set and read them.

    Args:
        run: output folder of a finished run. split: see answers.sets_of. wanted: names of cases; of two heads all by
            default but the one where both are right. per_case: images of each. top: classes that each model names.
        root: where the datasets are now. teacher: whether it is asked too, where the run has one.

    Raises:
        UsageError: as answers_of; no such case; an image that is not there or cannot be read.
    """
    answers = answers_of(run, split, root=root)
    titles = TITLES_OF_ONE_HEAD if answers.kd is None else TITLES
    for name in wanted:
        check_choice("--cases", name, titles)
    taught = _teacher(run, split, root) if teacher else None
    cases = cases_of(answers)
    asked = wanted or [name for name in titles if name != "right" or answers.kd is None]
    shown = {
        case.name: cards_of(answers, case.rows[:per_case], teacher=taught, top=top)
        for case in cases
        if case.name in asked
    }
    paths = sorted({card.path for some in shown.values() for card in some})
    images = {path: _square(path, run_config(run).DATASET.ROOT, root) for path in paths}
    ids = tuple(f"class {label}" for label in range(len(answers.classes)))
    title = f"Images of {printable(Path(run).resolve().name)}, {split}"
    return Gallery(title, _lead(answers, taught), shown_names(ClassList(ids, answers.classes)), cases, shown, images)


def _teacher(run: str | Path, split: str, root: str) -> Tensor | None:
    try:
        return teacher_of(run, split, root=root)
    except NoTeacher:
        return None
    except UsageError as error:
        raise UsageError(f"{error}. --no-teacher leaves the teacher out") from error


def _lead(answers: Answers, teacher: Tensor | None) -> tuple[str, ...]:
    said = [f"{len(answers.labels):,} images, {len(answers.classes):,} classes."]
    if answers.kd is not None:
        said.append(
            f"The combination is Eq. 11 with alpha {answers.alpha:g} and beta {answers.beta:g}, "
            f"{CHOSEN[answers.chosen]}; the KD head's probabilities are at beta."
        )
    asked = "was not asked" if teacher is None else "answers with the probabilities of Eq. 1 without eta"
    said.append(f"The teacher {asked}. A mark and bold letters are the true class's.")
    whole = "model" if answers.kd is None else "combination"
    said.append(
        f"Shown are the images of which the {whole} is most confident, one of each class before a second of any: they "
        "are no random sample."
    )
    return tuple(said)


def _square(path: str, before: str, root: str) -> Image.Image:
    """The centre square of an image, which may have moved.

    Args:
        path: where it was. before: the datasets' root then. root: where they are now; empty for where they were.
    """
    there = Path(path)
    if root:
        now = Path(root).expanduser().absolute()
        if not there.absolute().is_relative_to(now):
            there = now / below(path, Path(before).expanduser().absolute())
    try:
        image = read_image(there)
    except UnreadableImage as error:
        raise UsageError(
            f"{error}. The run's images were below {before}: where they are elsewhere now, name the folder (--root)"
        ) from error
    pixels = center_view(image, min(SIDE, *image.size), INTERPOLATIONS["bicubic"])
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
