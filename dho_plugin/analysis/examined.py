"""All that one finished run's answers come to, as numbers of which many runs can be kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError
from ..manifest import caveats, read, validation_line
from ..packed import pack_of, packed_line
from ..predicting import printable
from ..runs import run_config
from .ablation import ablation
from .agreement import Agreement, agreement
from .alpha_beta import AccuracyMap, Point, accuracy_map, marked_points, validation_of
from .answers import Answers, answers_of, sets_of
from .by_class import ByClass, by_class
from .predictors import CONTROL, Calibration, accuracies, calibration

ZERO_SHOT = "zero-shot"
WHO = {
    "fixed": "fixed by the configuration",
    "val": "chosen on validation images",
    "oracle": "chosen on the TEST images: an oracle, not a result",
}
ONE_HEAD = "This run has one head: the alpha-beta map, the ablation and the agreement of the heads need two."


class Heads(NamedTuple):
    """What needs two heads, see alpha_beta.py and agreement.py."""

    accuracy: AccuracyMap
    points: tuple[Point, ...]
    ablation: dict[str, float]
    agreement: Agreement


class Examined(NamedTuple):
    """One run.

    Attributes:
        split: the set that it was asked about. caveats: of these results, see manifest.caveats. said: the protocol.
        notes: what was left out, and why. heads: None for a single head. accuracy: in percent by predictor and set;
            the control's beside them.
    """

    run: Path
    seed: int
    images: int
    split: str
    caveats: tuple[str, ...]
    said: str
    notes: tuple[str, ...]
    heads: Heads | None
    calibration: dict[str, Calibration]
    by_class: ByClass
    accuracy: dict[str, dict[str, float]]


def examine(
    run: str | Path, split: str = "test", *, control: str = "", root: str = "", bins: int = 15, ood: bool = True
) -> Examined:
    """Ask a run about one of its sets, and about its test set and all shifts of it that are there.

    Args:
        run: output folder of a finished run. split: one of sets_of. control: another run's folder, or ZERO_SHOT for
            the run's own CLIP student before its training; empty for none. root: see answers_of.
        bins: of confidence. ood: whether to look at the shifts.

    Raises:
        UsageError: as answers_of, for the run and the control; the control answers about other images, or with an
            oracle's alpha and beta.
    """
    folder = Path(run).expanduser()
    of_run = partial(answers_of, folder, root=root)
    of_control = partial(answers_of, folder, root=root, zero_shot=True)
    if control != ZERO_SHOT:
        of_control = partial(answers_of, control, root=root)
    answers = of_run(split)
    notes = [_control(control, folder, of_control(split))] if control else []
    heads = _heads(answers, folder, root, notes) if answers.kd is not None else None
    classes = by_class(answers, of_control(split) if control else None)
    accuracy = _by_set(of_run, folder, ood, notes)
    if control:
        theirs = list(_by_set(of_control, folder, ood, []).values())
        accuracy |= {CONTROL: theirs[-1]} if theirs else {}
    transductive = bool(read(folder).get("transductive"))
    words = caveats(oracle=answers.chosen == "oracle", transductive=transductive, images=answers.paths)
    return Examined(
        run=folder,
        seed=run_config(folder).SEED,
        images=len(answers.labels),
        split=split,
        caveats=tuple(words),
        said=_protocol(folder, answers),
        notes=(*notes, *([] if heads else [ONE_HEAD])),
        heads=heads,
        calibration=calibration(answers, bins),
        by_class=classes,
        accuracy=accuracy,
    )


def _heads(answers: Answers, folder: Path, root: str, notes: list[str]) -> Heads:
    try:
        validation = validation_of(folder, root=root)
    except UsageError as reason:
        validation = None
        notes.append(f"Not searched: {reason}")
    found = accuracy_map(answers)
    points = marked_points(answers, found, validation)
    return Heads(found, points, ablation(answers, points), agreement(answers))


def _by_set(of_run: Any, folder: Path, ood: bool, notes: list[str]) -> dict[str, dict[str, float]]:
    """In percent by predictor and set: the test set and the shifts that can be read; of others a note is left."""
    found: dict[str, dict[str, float]] = {}
    for name in [name for name in sets_of(folder) if name == "test" or (ood and name != "val")]:
        try:
            answers = of_run(name)
        except UsageError as reason:
            notes.append(f"{name} is missing: {reason}")
            continue
        for predictor, value in accuracies(answers).items():
            found.setdefault(predictor, {})[name] = value
    return found


def _control(control: str, folder: Path, answers: Answers) -> str:
    """What the control is, in words."""
    if answers.chosen == "oracle":
        raise UsageError(f"--control {control}: its alpha and beta are an oracle's, with which nothing is compared")
    if control == ZERO_SHOT:
        return f"Control: {run_config(folder).MODEL.BACKBONE.NAME}, the student before its training, by class names."
    return f"Control: {_protocol(Path(control).expanduser(), answers)}"


def _protocol(folder: Path, answers: Answers) -> str:
    """What the run learned from, who chose alpha and beta, and what it was asked about, in sentences."""
    cfg, manifest = run_config(folder), read(folder)
    learned = "which left no manifest"
    if manifest:
        learned = (
            f"{manifest['labeled']['images']:,} labelled and {manifest['unlabeled']['images']:,} unlabelled images"
        )
    said = [f"{printable(str(folder))}: {cfg.TRAINER.NAME} on {cfg.DATASET.NAME}, seed {cfg.SEED}, {learned}"]
    if answers.chosen:
        said.append(f"Alpha {answers.alpha:g} and beta {answers.beta:g}, {WHO[answers.chosen]}")
    if manifest:
        said.append(validation_line(manifest["validation"]))
    if manifest.get("transductive"):
        said.append("TRANSDUCTIVE: it has learned from test images without their labels")
    packed = pack_of(answers.paths)
    said += [packed_line(packed)] if packed else []
    said.append(f"Asked about {len(answers.labels):,} {answers.split} images of {len(answers.classes):,} classes")
    return ". ".join(said) + "."
