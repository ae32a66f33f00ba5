"""The rows of the paper's Table 13, the paper's numbers, and which row is compared with which."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .cells import AFTER, Method

STUDENT, TEACHER, STAGE_ONE = "student, zero-shot", "teacher, zero-shot", "CasPL, stage one (no labels)"
# The trainer behind each base method. The paper has no VPT-9 without DHO; here it is the control of the rows that have.
BASES = {"LP": "LinearProbe", "VPT-3": "VPT", "VPT-9": "VPT", "CoOp": "CoOp", "PromptSRC": "PromptSRC"}
NEED_VIT = ("VPT", "PromptSRC", "CasPL")
CASCADED = ("CoOp", "PromptSRC")  # compared with CasPL too
PROBES = ("LinearProbe", "VPT")  # 1 % of ImageNet's labels in the paper (Table 11), the others 16 a class

COLUMNS = ("Val", "V2", "Sketch", "R", "A")
PAPER: dict[str, tuple[float | None, ...]] = {
    STUDENT: (66.7, 60.8, 46.2, 74.0, 47.8),
    "LP": (72.8, 64.2, 47.0, 74.6, 48.6),
    "LP + DHO (labels)": (73.4, 65.3, 48.3, 75.8, 49.4),
    "LP + DHO (+ unlabelled)": (74.6, 66.4, 49.2, 76.1, 49.8),
    "VPT-3": (73.6, 64.6, 47.7, 75.2, 48.7),
    "VPT-3 + DHO (labels)": (73.6, 65.3, 48.7, 75.9, 49.1),
    "VPT-3 + DHO (+ unlabelled)": (75.1, 66.8, 50.0, 76.9, 50.5),
    "VPT-9 + DHO (labels)": (74.0, 65.9, 48.9, 75.8, 46.5),
    "VPT-9 + DHO (+ unlabelled)": (75.6, 67.4, 50.8, 77.3, 46.5),
    "CoOp": (71.5, 64.2, 48.0, 75.2, 49.7),
    "CoOp + CasPL": (71.9, 64.3, 48.3, 76.0, None),
    "CoOp + DHO (labels)": (72.8, 65.5, 49.3, 76.4, 49.5),
    "CoOp + DHO (+ unlabelled)": (73.4, 66.2, 49.5, 77.0, 50.5),
    "PromptSRC": (71.3, 64.4, 49.6, 77.8, 50.9),
    "PromptSRC + CasPL": (72.8, 65.7, 49.7, 77.9, None),
    "PromptSRC + DHO (labels)": (73.0, 65.3, 49.5, 77.8, 51.3),
    "PromptSRC + DHO (+ unlabelled)": (73.6, 66.1, 49.8, 78.1, 51.0),
}
# What tells the rows apart, or what a flag of the command gives to all of them.
TAKEN = (
    *("SEED", "OUTPUT_DIR", "DATASET.NAME", "DATASET.ROOT", "DATASET.NUM_SHOTS", "DATASET.LABELS"),
    *("MODEL.BACKBONE.NAME", "TRAINER.NAME", "TRAINER.DHO.TEACHER.NAME", "TRAINER.DHO.UNLABELED"),
    *("TRAINER.VPT.PROMPT_DEPTH", "TRAINER.CASPL.SENIOR", "TRAINER.CASPL.BOOSTING"),
)


def here(label: str, layers: int) -> str:
    """A label on a student whose ViT has that many layers: VPT-9 on four layers is VPT-4."""
    return re.sub(r"(?<=VPT-)\d", lambda depth: str(min(int(depth[0]), layers)), label)


def rows(teacher: str, layers: int, probe: Sequence[str], prompt: Sequence[str]) -> Iterator[Method]:
    """All rows in the table's order.

    Args:
        teacher: model name. layers: of the student's ViT, 0 for a student without one, whose rows need none.
        probe, prompt: flags that say how many labels the rows of PROBES and the others have.
    """
    yield Method(STUDENT, ("--trainer", "ZeroshotCLIP"), seeded=False)
    yield Method(TEACHER, ("--trainer", "ZeroshotCLIP", "--backbone", teacher), seeded=False)
    # By label, so that two depths which are one here stand once.
    bases = {here(label, layers): trainer for label, trainer in BASES.items() if layers or trainer not in NEED_VIT}
    for label, trainer in bases.items():
        labels = tuple(probe if trainer in PROBES else prompt)
        options = ("TRAINER.VPT.PROMPT_DEPTH", label.removeprefix("VPT-")) if trainer == "VPT" else ()
        if label == CASCADED[0] and layers:
            yield Method(STAGE_ONE, ("--trainer", "CasPL", *labels), control=STUDENT)
        yield Method(label, ("--trainer", trainer, *labels), options, STUDENT)
        if label in CASCADED and layers:
            boosting = ("TRAINER.CASPL.BOOSTING", AFTER)
            yield Method(
                f"{label} + CasPL", ("--trainer", f"{trainer}CasPL", *labels), boosting, label, after=STAGE_ONE
            )
        dho = ("--trainer", f"{trainer}DHO", *labels)
        yield Method(f"{label} + DHO (labels)", (*dho, "--labels-only"), options, label)
        yield Method(f"{label} + DHO (+ unlabelled)", dho, options, label)


def footnotes(methods: Sequence[Method], student: str, layers: int) -> list[str]:
    """What a reader of these rows has to know beside the paper's table."""
    if not layers:
        return [f"{', '.join(NEED_VIT)} rows are left out: {student} has no ViT that takes visual prompts."]
    notes: list[str] = []
    above: set[str] = set()
    for label in BASES:
        name = here(label, layers)
        if name in above:
            notes.append(f"{label} is left out: this student has {layers} layers, so that it is {name} again.")
        elif name != label:
            notes.append(f"{name} stands for {label}: this student has {layers} layers.")
        above.add(name)
    steps = "CasPL rows start from stage one: its steps, on all training images without labels, come on top of theirs."
    return [*notes, *([steps] if any(method.after for method in methods) else [])]


def paper_rows(layers: int) -> dict[str, tuple[float | None, ...]]:
    """The paper's numbers by the labels that the rows have here."""
    return {here(label, layers): PAPER[label] for label in reversed(PAPER)}  # of two depths in one, the lesser


def comparisons(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Each row with its control, and each DHO row with CasPL on the same base method, where both are in the table."""
    present = {method.row for method in methods}
    pairs = []
    for method in methods:
        base = method.row.partition(" + ")[0]
        rivals = (method.control, f"{base} + CasPL" if is_dho(method.row) else "")
        pairs += [(method.row, rival) for rival in rivals if rival in present]
    return pairs


def is_dho(row: str) -> bool:
    """Whether a row has the second head."""
    return " + DHO" in row
