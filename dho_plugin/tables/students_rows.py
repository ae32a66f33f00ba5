"""The rows of the paper's Table 1, its numbers, the teachers, and which row is compared with which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .cells import AFTER, Method
from .summary import Paper

RIVALS = ("CE", "KD", "KDFeature", "CEKD", "CEKDFeature", "SSKD", "DHKD")  # each row is named after its trainer
DHO, DHO_F = "DHO", "DHO-F"
ZERO_SHOT, FEW_SHOT, TRAINED = "teacher, zero-shot", "Tip-Adapter-F", "teacher"
# The rows of Figures 5 and 11, and those of Figures 6 and 12.
PICTURES = {
    "zero_shot_teacher": (DHO, "CEKD", "CEKDFeature", "KD", "CE"),
    "few_shot_teacher": (DHO, DHO_F, FEW_SHOT, ZERO_SHOT, TRAINED),
}
# Section 4.1: alpha for zero-shot and for few-shot teachers where there are no validation images to search it on.
ALPHAS, BETA = {DHO: 0.4, DHO_F: 0.2}, 0.5
# Datasets whose teachers are trained by us, on images of their own: kinds of their errors.
KINDS = {"digits": ("confused", "noisy", "clean")}

SHOTS = (1, 2, 4, 8, 16)
# Table 1 by student; KD and the zero-shot teacher use no labels, and the paper has one number for all shots.
PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "ResNet-18": {
        ZERO_SHOT: (50.0,) * 5,
        FEW_SHOT: (52.0, 52.4, 53.2, 54.0, 55.3),
        "CE": (0.7, 1.1, 1.8, 3.4, 8.2),
        "KD": (51.0,) * 5,
        "CEKD": (50.5, 50.6, 50.6, 51.0, 51.2),
        "CEKDFeature": (17.1, 23.5, 28.0, 32.2, 33.8),
        DHO: (51.8, 52.4, 52.6, 53.3, 54.5),
        DHO_F: (53.7, 54.2, 54.8, 56.2, 57.7),
    },
    "ResNet-50": {
        ZERO_SHOT: (60.3,) * 5,
        FEW_SHOT: (61.0, 61.6, 62.5, 63.8, 65.4),
        "CE": (11.4, 17.3, 26.4, 36.7, 47.0),
        "KD": (61.0,) * 5,
        "CEKD": (60.4, 60.8, 61.2, 61.6, 62.3),
        "CEKDFeature": (23.0, 32.3, 41.3, 48.2, 54.3),
        "SSKD": (55.2, 58.1, 60.0, 62.3, 64.0),
        "DHKD": (25.6, 34.8, 42.7, 49.2, 55.2),
        DHO: (61.0, 62.1, 62.5, 63.7, 64.7),
        DHO_F: (62.3, 63.1, 63.9, 65.5, 66.8),
    },
}


class Teacher(NamedTuple):
    """What the students of a block learn from.

    Attributes:
        name: of the model, or the kind of its errors. rows: its own. after: which of them a student waits for.
        flags, options: what a student's row says about it. fixed: whether alpha and beta are the paper's.
    """

    name: str
    rows: tuple[Method, ...]
    flags: tuple[str, ...]
    options: tuple[str, ...] = ()
    after: str = ""
    fixed: bool = True

    def student(self, row: str, trainer: str, options: Sequence[str] = (), flags: Sequence[str] = ()) -> Method:
        """A row that learns from it."""
        return Method(row, ("--trainer", trainer, *self.flags, *flags), (*self.options, *options), after=self.after)


def clip_teacher(name: str) -> Teacher:
    """A CLIP model: zero-shot, and adapted to the labels by Tip-Adapter-F."""
    model = ("--backbone", name)
    zero_shot = Method(ZERO_SHOT, ("--trainer", "ZeroshotCLIP", *model), seeded=False, same_for=("shots",))
    return Teacher(name, (zero_shot, Method(FEW_SHOT, ("--trainer", "TipAdapterF", *model))), ("--teacher", name))


def trained_teacher(dataset: str, kind: str) -> Teacher:
    """A run of CE on the images that a dataset has for its teacher, with labels of that kind; one for each seed."""
    run = Method(TRAINED, ("--trainer", "CE", "--dataset", f"{dataset}_{kind}"), same_for=("shots",))
    others = ("TRAINER.DHO.TEACHER.OTHER_LABELS", "True")
    return Teacher(kind, (run,), ("--teacher", AFTER), others, TRAINED, fixed=False)


def interpolated(row: str, *, fixed: bool) -> tuple[str, ...]:
    """Options for alpha and beta of a row; none where the configuration's own hold."""
    return ("TRAINER.DHO.ALPHA", str(ALPHAS[row]), "TRAINER.DHO.BETA", str(BETA)) if fixed else ()


def tuned(methods: Sequence[Method]) -> list[Method]:
    """The rows; DHO and DHO-F search alpha and beta on validation images, as in the paper on its ten datasets."""
    choose = ("TRAINER.DHO.CHOOSE", "val")
    return [m._replace(options=(*m.options, *choose)) if m.row in ALPHAS else m for m in methods]


def rows(teacher: Teacher) -> list[Method]:
    """All rows of a block: the teachers, the rivals, DHO, and DHO-F where there is a few-shot teacher."""
    rivals = [
        teacher.student(rival, rival) if rival != "CE" else Method("CE", ("--trainer", "CE"), same_for=("block",))
        for rival in RIVALS
    ]
    dho = [teacher.student(DHO, "StudentDHO", interpolated(DHO, fixed=teacher.fixed))]
    if any(method.row == FEW_SHOT for method in teacher.rows):
        flags = ("--trainer", "StudentDHO", "--teacher", AFTER)
        dho.append(Method(DHO_F, flags, interpolated(DHO_F, fixed=teacher.fixed), after=FEW_SHOT))
    return [*teacher.rows, *rivals, *dho]


def comparisons() -> list[tuple[str, str]]:
    """DHO with each rival and with its teacher, then the few-shot teacher's pairs."""
    pairs = [(DHO, rival) for rival in (*RIVALS, ZERO_SHOT, TRAINED)]
    return [*pairs, (DHO_F, DHO), (DHO_F, FEW_SHOT), (FEW_SHOT, ZERO_SHOT)]


def claims() -> list[tuple[str, str]]:
    """The pairs that the paper's claim is about."""
    return [(DHO, rival) for rival in RIVALS]


def papers_student(backbone: str) -> str:
    """Which of the paper's two students stands beside ours."""
    return "ResNet-50" if "resnet50" in backbone.casefold() else "ResNet-18"


def paper(student: str, shots: Sequence[int]) -> Paper:
    """The paper's numbers of one of its students at these shots."""
    numbers = {row: dict(zip(SHOTS, values, strict=True)) for row, values in PAPER[student].items()}
    columns = tuple(f"{count}-shot" for count in shots)
    return Paper(columns, {row: [by_shots.get(count) for count in shots] for row, by_shots in numbers.items()})
