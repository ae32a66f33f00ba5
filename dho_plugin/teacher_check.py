"""`python -m dho_plugin teacher-check`: look at the teacher on the labelled images before a long run; no training."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import cli
from .classes import ClassList, class_list
from .errors import UsageError
from .host import set_random_seed
from .labels import build_labeled_dataset
from .pool import check_shots, check_trainable, check_validation, copy_policy
from .precision import Precision
from .predicting import printable
from .runs import is_run
from .tables.summary import Table, markdown
from .teacher_advice import BINS, COARSE, Advice, Examination, advise, error_sentences, examine, percent
from .teachers import find_teacher
from .trainers.data import DataManager
from .trainers.section import build_teacher, check_dataset, check_section, single_prompt

LINES = 10  # of the tables of classes and of confusions


class Answers(NamedTuple):
    """A teacher's logits (N, C) on images with labels (N,), the classes, and which images these are, in words."""

    logits: Tensor
    labels: Tensor
    classes: ClassList
    images: str


def ask(cfg: Any) -> Answers:
    """Build dataset and teacher, and let the teacher answer.

    It is asked about the labelled training images, which are those that a run of this configuration draws; a run of
    ours, which was trained on these, about the validation images.

    Raises:
        UsageError: as a training run would, before the teacher is loaded; no validation images for a run.
    """
    name = cfg.TRAINER.DHO.TEACHER.NAME
    find_teacher(name)
    check_dataset(cfg)
    check_section(cfg)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    dataset = build_labeled_dataset(cfg)
    items, images = dataset.train_x, "labelled training images"
    if is_run(name):
        purpose = f"{name} was trained on labels, so it is looked at on validation images"
        check_validation(dataset, purpose, copies=copy_policy(cfg))
        items, images = dataset.val, "validation images, since the teacher was trained on the labelled ones"
    check_trainable(dataset, final_model="last_step", copies=copy_policy(cfg))
    check_shots(dataset.train_x, cfg.DATASET.NUM_SHOTS, dataset.lab2cname, few=cfg.DATASET.FEW)
    classes, device = class_list(dataset), torch.device("cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu")
    precision = Precision("amp" if device.type == "cuda" else "fp32", device)
    teacher = build_teacher(cfg, classes, (single_prompt(cfg),), dataset.train_x, precision, device).eval()
    loader = DataManager(cfg, dataset, size=teacher.size).evaluation_loader(items)
    return Answers(*_answers(teacher, loader, precision, device), classes, images)


@torch.no_grad()
def _answers(teacher: nn.Module, loader: Any, precision: Precision, device: torch.device) -> tuple[Tensor, Tensor]:
    logits, labels, done, total = [], [], 0, len(loader.dataset)
    for batch in loader:
        with precision.autocast():
            logits.append(teacher(batch["img"].to(device)).float().cpu())
        labels.append(batch["label"])
        done += len(batch["label"])
        print(f"\rThe teacher has seen {done:,} of {total:,} images", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return torch.cat(logits), torch.cat(labels)


def shown_names(classes: ClassList) -> list[str]:
    """Class names, with the id where two classes share one."""
    names = [printable(name) for name in classes.names]
    return [name if names.count(name) == 1 else f"{name} ({id_})" for id_, name in zip(classes.ids, names, strict=True)]


def measures_table(seen: Examination, zeta: float | None) -> Table:
    """What was measured, in words; zeta is None for a teacher that it does not reach."""
    coarse = f", coarse for {seen.images:,} images" if seen.images < COARSE else ""
    scale, factor = ("zeta", zeta) if zeta else ("temperature", 1.0)
    best = "none" if seen.temperature is None else f"{factor * seen.temperature:.2g}"
    lines = [
        ("top-1 accuracy (95 % interval)", f"{percent(seen.accuracy)} ({percent(seen.low)} to {percent(seen.high)})"),
        ("mean confidence", percent(seen.confidence)),
        (f"ECE ({BINS} bins{coarse})", f"{seen.calibration_error:.3f}"),
        ("NLL, nats", f"{seen.likelihood:.3f}"),
        ("Brier score, of 2", f"{seen.brier:.3f}"),
        (f"{scale} of least NLL (now {factor:g})", best),
    ]
    return Table((f"{seen.images:,} images, {len(seen.counts):,} classes", ""), tuple(lines))


def classes_table(counts: Tensor, names: Sequence[str]) -> Table:
    """The classes with errors, worst first, and what they are taken for."""
    wrong, of_class = counts.clone().fill_diagonal_(0), counts.sum(dim=1)
    errors = wrong.sum(dim=1)
    order = sorted(errors.nonzero()[:, 0].tolist(), key=lambda c: (-errors[c] / of_class[c], -int(errors[c]), c))
    lines = []
    for c in order[:LINES]:
        best = int(wrong[c].argmax())
        taken = f"{names[best]} ({int(wrong[c, best])} of {int(errors[c])})"
        lines.append((names[c], f"{int(counts[c, c])} of {int(of_class[c])}", taken))
    return Table(("worst classes", "right", "mostly taken for (of its errors)"), tuple(lines))


def confused_pairs(counts: Tensor) -> list[tuple[int, int, int]]:
    """(true, predicted, count) of all errors, the most frequent first."""
    wrong = counts.clone().fill_diagonal_(0)
    pairs = [(t, p, int(wrong[t, p])) for t, p in wrong.nonzero().tolist()]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def confusions_table(counts: Tensor, names: Sequence[str]) -> Table:
    """The most frequent confusions."""
    of_class = counts.sum(dim=1)
    lines = [(f"{names[t]} -> {names[p]}", f"{n} of {int(of_class[t])}") for t, p, n in confused_pairs(counts)[:LINES]]
    return Table(("true -> predicted", "images"), tuple(lines))


def numbers(seen: Examination, advice: Advice, answers: Answers, cfg: Any) -> dict[str, Any]:
    """Everything that is shown, and all classes and confusions, as plain values."""
    names, found = shown_names(answers.classes), seen.concentration
    of_class = seen.counts.sum(dim=1).tolist()
    return {
        "teacher": cfg.TRAINER.DHO.TEACHER.NAME,
        "dataset": cfg.DATASET.NAME,
        "which": answers.images,
        "images": seen.images,
        "accuracy": seen.accuracy,
        "accuracy_95": [seen.low, seen.high],
        "confidence": seen.confidence,
        "ece": seen.calibration_error,
        "nll": seen.likelihood,
        "brier": seen.brier,
        "zeta": zeta_of(cfg),
        "temperature_of_least_nll": seen.temperature,
        "errors": {
            "number": seen.errors,
            "kind": seen.kind,
            "systematic_percent": seen.systematic_points,
            "judged": found.errors,
            "share": found.share if found.errors else None,
            "share_by_chance": found.expected if found.errors else None,
            "p_value": found.p_value,
        },
        "classes": [
            {"class": name, "images": of_class[c], "right": int(seen.counts[c, c])} for c, name in enumerate(names)
        ],
        "confusions": [
            {"true": names[t], "predicted": names[p], "images": n} for t, p, n in confused_pairs(seen.counts)
        ],
        "advice": list(advice.sentences),
        "settings": {f"TRAINER.DHO.{key}": value for key, value in advice.settings.items()},
    }


def zeta_of(cfg: Any) -> float | None:
    """The temperature of a zero-shot teacher; None for a run of ours, whose logits it does not reach."""
    return None if is_run(cfg.TRAINER.DHO.TEACHER.NAME) else cfg.TRAINER.DHO.ZETA


def show(seen: Examination, advice: Advice, answers: Answers, cfg: Any) -> None:
    """Print tables, verdict and advice."""
    names = shown_names(answers.classes)
    print(f"\nTeacher {cfg.TRAINER.DHO.TEACHER.NAME} on {cfg.DATASET.NAME}: {answers.images}\n")
    print(markdown(measures_table(seen, zeta_of(cfg))))
    if seen.errors and seen.fewest > 1:
        print(f"\n{markdown(classes_table(seen.counts, names))}")
    if seen.errors:
        print(f"\n{markdown(confusions_table(seen.counts, names))}")
    for sentence in (*error_sentences(seen), *advice.sentences):
        print(f"\n{textwrap.fill(sentence, 100, break_on_hyphens=False)}")
    if advice.settings:
        print("\nSettings:", *(f"TRAINER.DHO.{key} {value:g}" for key, value in advice.settings.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Look at the teacher and print what is seen."""
    p = cli.parser()
    p.prog, p.description = "python -m dho_plugin teacher-check", f"{__doc__} It takes the flags of train.py."
    p.add_argument("--json", default="", help="write every number to this file")
    p.set_defaults(trainer="StudentDHO")
    args = p.parse_args(argv)
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UsageError(f"--json {args.json}: no such folder")
    cfg = cli.build_config(args)
    answers = ask(cfg)
    seen = examine(answers.logits, answers.labels)
    advice = advise(seen, zeta=zeta_of(cfg))
    show(seen, advice, answers, cfg)
    if args.json:
        text = json.dumps(numbers(seen, advice, answers, cfg), indent=1)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
