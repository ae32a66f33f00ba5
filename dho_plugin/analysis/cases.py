"""Images of a set by which head is right (Fig. 9, 16 to 19), which of them are shown, and what each model says of one.

An answer is the class of the highest probability. Where both heads give the true class, so does Eq. 11, since a class
that is highest in both terms is highest in their sum: there is no case of both heads right and the combination wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..losses import soft_targets
from ..predicting import printable
from .answers import Answers

TEACHER, CE, KD, COMBINED, MODEL = "teacher", "CE head", "KD head", "combined", "model"
TITLES = {
    "ce": "CE head and combination right, KD head wrong",
    "kd": "KD head and combination right, CE head wrong",
    "combination": "only the combination right",
    "ce-alone": "only the CE head right",
    "kd-alone": "only the KD head right",
    "wrong": "all wrong",
    "right": "all right",
}
TITLES_OF_ONE_HEAD = {"wrong": "wrong", "right": "right"}
_ALPHAS = {CE: 1.0, KD: 0.0, COMBINED: None}  # of Eq. 11; None is the run's own


class Case(NamedTuple):
    """Images that have something in common.

    Attributes:
        name: a key of TITLES. title: in words. rows: their numbers in the set, in the order in which they are shown.
    """

    name: str
    title: str
    rows: tuple[int, ...]


class Card(NamedTuple):
    """An image and what is said of it.

    Attributes:
        path: of its file. label: its class. says: by who says it (TEACHER, ...) the most probable classes and their
            probabilities, the most probable first.
    """

    path: str
    label: int
    says: Mapping[str, tuple[tuple[int, float], ...]]

    @property
    def file(self) -> str:
        """Its file and folder, to be shown."""
        return printable("/".join(Path(self.path).parts[-2:]))


def cases_of(answers: Answers) -> list[Case]:
    """The cases, in the order of their titles; each image is in one of them.

    First stands the image of which the model as a whole is most confident, then that of another class, until each class
    that the case has was there once; then the second image of each class, and so on. The same answers give the same
    order.
    """
    probabilities = answers.probabilities()
    right = probabilities.argmax(dim=-1).eq(answers.labels)
    members = {"wrong": ~right, "right": right} if answers.kd is None else _by_head(answers, right)
    confidence = probabilities.max(dim=-1).values
    titles = TITLES_OF_ONE_HEAD if answers.kd is None else TITLES
    return [Case(name, title, _spread(members[name], confidence, answers.labels)) for name, title in titles.items()]


def cards_of(answers: Answers, rows: Sequence[int], *, teacher: Tensor | None = None, top: int = 3) -> list[Card]:
    """What is said of images: by the teacher, each head and the combination, or the teacher and the one head.

    The KD head's probabilities are at beta, as they enter Eq. 11. The teacher's are Eq. 1 without eta, as a zero-shot
    CLIP answers.

    Args:
        rows: numbers of the images. teacher: logits (N, C), see answers.teacher_of; None leaves it out. top: classes
            that each names.
    """
    some, at = list(rows), answers._replace(ce=answers.ce[list(rows)])
    said = {} if teacher is None else {TEACHER: soft_targets(teacher[some], temperature=1.0)}
    if answers.kd is None:
        said[MODEL] = at.probabilities()
    else:
        at = at._replace(kd=answers.kd[some])
        said |= {who: at.probabilities(alpha=alpha) for who, alpha in _ALPHAS.items()}
    return [
        Card(answers.paths[row], int(answers.labels[row]), {who: _first(p[place], top) for who, p in said.items()})
        for place, row in enumerate(some)
    ]


def _by_head(answers: Answers, combined: Tensor) -> dict[str, Tensor]:
    """Which images a case of two heads has: bool (N,) by its name, from where the combination is right."""
    ce, kd = (answers.probabilities(alpha=_ALPHAS[head]).argmax(dim=-1).eq(answers.labels) for head in (CE, KD))
    return {
        "ce": ce & ~kd & combined,
        "kd": kd & ~ce & combined,
        "combination": ~ce & ~kd & combined,
        "ce-alone": ce & ~kd & ~combined,
        "kd-alone": kd & ~ce & ~combined,
        "wrong": ~ce & ~kd & ~combined,
        "right": ce & kd,
    }


def _spread(members: Tensor, confidence: Tensor, labels: Tensor) -> tuple[int, ...]:
    """The rows of a case in their order, see cases_of."""
    rows = members.nonzero()[:, 0]
    rows = rows[torch.argsort(confidence[rows], descending=True, stable=True)]
    shown: Counter[int] = Counter()
    turns = []
    for row, label in zip(rows.tolist(), labels[rows].tolist(), strict=True):
        turns.append((shown[label], row))
        shown[label] += 1
    return tuple(row for _, row in sorted(turns, key=itemgetter(0)))


def _first(probabilities: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    order = torch.argsort(probabilities, descending=True, stable=True)[:count].tolist()
    return tuple((label, float(probabilities[label])) for label in order)
