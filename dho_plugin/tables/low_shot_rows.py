"""The rows of the paper's Tables 4, 5, 9 and 12: CLIP students trained as a whole, from few per cent of the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .ablations import ALL, CLIP_FLAGS, CLIP_OPTIONS, NEITHER, STARTS, started
from .by_shots import column
from .cells import AFTER, Method
from .command import words
from .summary import Table

TRAINER = "StudentDHO"
B16, L14, H14 = "ViT-B/16", "ViT-L/14@336px", "ViT-H-14-378-quickgelu:dfn5b"
SHOWN = {H14: "DFN ViT-H/14", "simclr-1": "1 %", "simclr-10": "10 %"}
ZERO_SHOT, TABLE_4, MERGED = ", zero-shot", ", beta 0.5", ", beta 0.5, tokens merged"


class Pair(NamedTuple):
    """A student and its teacher. tokens: merged in each layer in another evaluation (Table 9); 0 for none."""

    student: str
    teacher: str
    tokens: int = 0


PAIRS = {
    "imagenet": (Pair(B16, L14), Pair(B16, H14, tokens=8), Pair(L14, H14)),
    "shapes": (Pair("shapes-student", "shapes-teacher", tokens=2),),
}
# On shapes 1.25 and 10 % of the training images.
LABELS = {"imagenet": ("simclr-1", "simclr-10"), "shapes": ("1", "8")}
# Section B.3: four parts of a batch, one after the other.
ACCUMULATED = {L14: ("TRAIN.ACCUMULATE", "4")}

TABLE_12 = {
    "ViT-B/16 <- ViT-L/14@336px, 1 %": (78.7, 70.1, 48.0, 70.9, 41.1),
    "ViT-B/16 <- ViT-L/14@336px, 10 %": (80.8, 71.3, 47.4, 71.7, 41.4),
    "ViT-B/16 <- DFN ViT-H/14, 1 %": (81.6, 72.6, 50.6, 65.5, 35.6),
    "ViT-B/16 <- DFN ViT-H/14, 10 %": (82.8, 73.6, 50.7, 67.7, 37.8),
    "ViT-L/14@336px <- DFN ViT-H/14, 1 %": (84.6, 77.0, 61.5, 79.9, 60.8),
    "ViT-L/14@336px <- DFN ViT-H/14, 10 %": (85.9, 77.8, 61.7, 82.8, 64.4),
}
# Tables 4, 5 and 9 have one column.
VAL = {
    **{f"{row}{TABLE_4}": values[0] for row, values in TABLE_12.items()},  # the same numbers, at another beta
    f"ViT-B/16 <- ViT-L/14@336px, 1 %, {NEITHER}": 78.3,
    f"ViT-B/16 <- DFN ViT-H/14, 1 %{MERGED}": 81.4,
    f"ViT-B/16 <- DFN ViT-H/14, 10 %{MERGED}": 82.5,
}
PAPER: dict[str, tuple[float | None, ...]] = {
    "ViT-B/16, zero-shot": (66.7, 60.8, 46.2, 74.0, 47.0),
    "ViT-L/14@336px, zero-shot": (75.3, 68.3, 59.2, 86.5, 74.6),
    "DFN ViT-H/14, zero-shot": (83.6, 77.2, 71.7, 92.3, 77.4),
    **TABLE_12,
    **{row: (value, None, None, None, None) for row, value in VAL.items()},
}
# Table 4's other methods: millions of parameters, 1 %, 10 %.
OTHERS = {
    "MSN, ViT-B/4": (86, 75.7, 80.2),
    "Semi-ViT, ViT-L/14": (307, 77.3, 83.3),
    "Semi-ViT, ViT-H/14": (632, 80.0, 84.3),
    "CLIP, ViT-B/16": (86, 74.3, 80.4),
    "REACT, ViT-B/16": (86, 76.1, 80.8),
    "REACT (gated image), ViT-B/16": (129, 77.4, 81.8),
    "CLIP, ViT-L/14": (304, 80.5, 84.7),
    "REACT, ViT-L/14": (304, 81.6, 85.1),
    "REACT (gated image), ViT-L/14": (380, 81.6, 85.0),
    "CT, 2 architectures": (608, 80.1, 85.1),
    "MCT, 2 architectures": (608, 80.7, 85.2),
    "CT, 4 architectures": (1071, 80.0, 84.8),
    "MCT, 4 architectures": (1071, 80.5, 85.8),
    "SimCLR v2 distilled, ResNet-50 (2x, SK)": (140, 75.9, 80.2),
    "SimCLR v2 self-distilled, ResNet-154 (3x, SK)": (795, 76.6, 80.9),
    "DHO, ViT-B/16": (86, 81.6, 82.8),
    "DHO, ViT-L/14": (304, 84.6, 85.9),
    "SigLIP, ViT-SO400M/14, zero-shot": (400, 83.1, None),
    "DFN, ViT-H/14, zero-shot": (632, 84.4, None),
}


def label(pair: Pair, labels: str) -> str:
    """A row's: "ViT-B/16 <- DFN ViT-H/14, 1 %"; of a list that is no public one, the file's name."""
    amount = column(int(labels)) if labels.isdigit() else shown(labels.rpartition("/")[2])
    return f"{shown(pair.student)} <- {shown(pair.teacher)}, {amount}"


def shown(name: str) -> str:
    """A model or a list as rows have it."""
    return SHOWN.get(name, name)


def rows(dataset: str, pairs: Sequence[Pair], amounts: Sequence[str], *, starts: bool = False) -> Iterator[Method]:
    """All rows in the table's order.

    Args:
        amounts: of labels, each a list or a number a class. starts: also how the heads of the first pair start, at the
            first amount (Table 5).
    """
    for name in dict.fromkeys(name for pair in pairs for name in pair[:2]):
        yield Method(f"{shown(name)}{ZERO_SHOT}", ("--trainer", "ZeroshotCLIP", "--backbone", name), seeded=False)
    for pair in pairs:
        for labels in amounts:
            first = trained(dataset, pair, labels)
            again = evaluated(first, TABLE_4, "TRAINER.DHO.BETA", "0.5")
            yield from (first, again)
            if pair.tokens:
                merged = evaluated(first, MERGED, *again.options[-2:], "MODEL.TOKEN_MERGING", str(pair.tokens))
                yield merged._replace(control=again.row)
    if starts:
        first = trained(dataset, pairs[0], amounts[0])
        for row in STARTS:
            if row != ALL:  # which the row above is
                options = (*first.options, "TRAINER.DHO.BETA", "0.5", *started(row))
                yield first._replace(row=f"{first.row}, {row}", options=options, control=f"{first.row}{TABLE_4}")


def trained(dataset: str, pair: Pair, labels: str) -> Method:
    """A training, with the alpha and beta of Table 11."""
    amount = words(shots=labels) if labels.isdigit() else words(labels=labels)
    models = words(backbone=pair.student, teacher=pair.teacher)
    flags = ("--trainer", TRAINER, *amount, *models, *CLIP_FLAGS.get(dataset, ()))
    options = (*CLIP_OPTIONS.get(dataset, ()), *ACCUMULATED.get(pair.student, ()))
    options += ("TRAINER.DHO.CHOOSE", "fixed", "TRAINER.DHO.ALPHA", "0.5", "TRAINER.DHO.BETA", "1.0")
    return Method(label(pair, labels), flags, options, control=f"{shown(pair.student)}{ZERO_SHOT}")


def evaluated(run: Method, how: str, *options: str) -> Method:
    """Another evaluation of a training's run."""
    flags = (*run.flags, "--eval-only", "--model-dir", AFTER)
    return Method(f"{run.row}{how}", flags, (*run.options, *options), control=run.row, after=run.row)


def papers_table() -> Table:
    """Table 4, whose other numbers the paper takes from their own papers."""
    lines = tuple(
        (name, str(millions), f"{one:.1f}", "-" if ten is None else f"{ten:.1f}")
        for name, (millions, one, ten) in OTHERS.items()
    )
    return Table(("the paper's Table 4, ImageNet, top-1, %", "params, M", "1 %", "10 %"), lines)
