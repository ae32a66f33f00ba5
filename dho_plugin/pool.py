"""The unlabelled images of any Dassl dataset: build it once more with all shots and take the labelled ones away."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .datasets.catalogue import CLASSES
from .errors import UsageError
from .host import Datum, build_dataset
from .leaks import check_apart, overlap
from .predicting import printable

POOLS = ("complement", "union")
FEW = ("stop", "clip")
TEST_COPIES = ("auto", "stop", "allow")


def _path(item: Datum) -> str:
    return os.path.abspath(item.impath)


def unlabeled_paths(
    cfg: Any, labeled: Sequence[Datum], test: Sequence[Datum] | None = None, *, pool: str = "complement"
) -> list[str]:
    """Paths of the images that are used without labels; labels are dropped here, so none can reach a loss.

    Args:
        cfg: the run's configuration; cfg.DATASET names the dataset, NUM_SHOTS is ignored.
        labeled: the labelled training images that the dataset drew. test: the images it is evaluated on, none of which
            may be in the pool; those of a second build may be others.
        pool: "complement" (the public code: labelled images are left out) or "union" (Algorithm 1, line 7).

    Raises:
        UsageError: K shots leave nothing; or the full set lacks labelled images (a split of another folder); or the
            pool holds test images, unless TRAINER.DHO.TRANSDUCTIVE allows them; where copy_policy allows mere copies
            of test images these are left out instead.
    """
    full = with_all_labels(cfg)
    paths = [_path(item) for item in (full.train_u or full.train_x)]
    taken = {_path(item) for item in labeled}
    strangers = taken.difference(paths if not full.train_u else (_path(item) for item in full.train_x))
    if strangers:
        raise UsageError(
            f"{len(strangers)} of {len(taken)} labelled images are not in {cfg.DATASET.NAME}'s training set, first "
            f"{min(strangers)}: the few-shot split was probably cached for another folder; delete its cache"
        )
    rest = paths if pool == "union" else [path for path in paths if path not in taken]
    if not rest and cfg.DATASET.NUM_SHOTS < 1:
        print(f"All {len(paths)} training images are labelled (--shots labels K a class): distilling on them alone")
    elif not rest:
        raise UsageError(
            f"{cfg.DATASET.NAME} has {len(paths)} training images and all are labelled, so none is left unlabelled: "
            "lower --shots, or run on labels only (--labels-only)"
        )
    if not cfg.TRAINER.DHO.TRANSDUCTIVE:
        copies = check_apart(
            rest,
            _paths(test),
            "unlabelled",
            "remove them from the training images; or set TRAINER.DHO.TRANSDUCTIVE True, and every result says so",
            copy_policy(cfg),
        )
        rest = [path for path in rest if path not in copies] if copies else rest
    return rest


def with_all_labels(cfg: Any) -> Any:
    """The dataset of a configuration with all shots, whatever it says of labels.

    Some datasets draw a train/val split while they are built: the run's own draws do not depend on this build.
    """
    everything = cfg.clone()
    everything.defrost()
    everything.DATASET.NUM_SHOTS = -1
    everything.VERBOSE = False
    state = random.getstate()
    full = build_dataset(everything)
    random.setstate(state)
    return full


def copy_policy(cfg: Any) -> str:
    """DATASET.TEST_COPIES, "stop" or "allow"; auto allows them in the datasets whose splits are published files, where
    duplicates are part of every published number."""
    wanted = cfg.DATASET.TEST_COPIES
    return ("allow" if cfg.DATASET.NAME in CLASSES else "stop") if wanted == "auto" else wanted


def _paths(items: Sequence[Datum] | None) -> list[str]:
    return [item.impath for item in items or []]


def check_trainable(dataset: Any, *, final_model: str, copies: str = "stop") -> None:
    """Refuse to train on test images, or to choose the epoch on them.

    Args:
        dataset: a Dassl dataset. final_model: TEST.FINAL_MODEL. copies: see copy_policy.

    Raises:
        UsageError: labelled or, for "best_val", validation images are test images (see leaks.overlap); or it has no
            validation images, where Dassl would take the test images instead.
    """
    labeled, test = _paths(dataset.train_x), _paths(dataset.test)
    if labeled and set(labeled) <= set(test):
        raise UsageError("this dataset is for testing only, its training images are its test images: use --eval-only")
    check_apart(labeled, test, "labelled", "remove them from the training images", copies)
    if final_model == "best_val" and not dataset.val:
        raise UsageError("TEST.FINAL_MODEL best_val: this dataset has no validation images; use last_step")
    if final_model == "best_val" and _shared(dataset.val, dataset.test, copies):
        raise UsageError(
            "TEST.FINAL_MODEL best_val would choose the epoch on test images, since this dataset returns its test set "
            "as validation set: use last_step"
        )
    if final_model == "best_val":
        _check_not_learned(dataset, "TEST.FINAL_MODEL best_val", copies)


def check_validation(dataset: Any, purpose: str, *, copies: str = "stop") -> None:
    """Refuse to choose anything on validation images that are not there, or that are test or labelled images.

    Args:
        dataset: a Dassl dataset. purpose: the setting that asks for them. copies: see copy_policy.
    """
    if not dataset.val:
        raise UsageError(f"{purpose}: this dataset has no validation images; take fixed values")
    if _shared(dataset.val, dataset.test, copies):
        raise UsageError(
            f"{purpose}: this dataset returns its test set as validation set, and nothing may be chosen on test "
            "images; take fixed values"
        )
    _check_not_learned(dataset, purpose, copies)


def _shared(first: Sequence[Datum] | None, second: Sequence[Datum] | None, copies: str) -> list[tuple[str, str]]:
    return overlap(_paths(first), _paths(second), content=False if copies == "allow" else None)


def _check_not_learned(dataset: Any, purpose: str, copies: str) -> None:
    learned = _shared(dataset.train_x, dataset.val, copies)
    if learned:
        raise UsageError(
            f"{purpose}: {len(learned):,} validation images are labelled training images, first "
            f"{printable(learned[0][1])}: remove them from one of the two sets, or choose nothing on them"
        )


def check_shots(labeled: Sequence[Datum], shots: int, names: dict[int, str], *, few: str = "stop") -> None:
    """Refuse a K-shot split in which a class has fewer than K images; few "clip": say so instead.

    Raises:
        UsageError: it lists the classes and their counts.
    """
    counts = Counter(item.label for item in labeled)
    short = [f"{printable(name)} ({counts[label]})" for label, name in sorted(names.items()) if counts[label] < shots]
    if shots < 1 or not short:
        return
    said = (
        f"--shots {shots}: {len(short)} classes have fewer training images: {', '.join(short[:8])}"
        f"{' ...' if len(short) > 8 else ''}"
    )
    if few != "clip":
        least = min(counts[label] for label in names)
        raise UsageError(f"{said}. Use at most {least} shots, or take all that there are (DATASET.FEW clip)")
    print(f"{said}. All of them are taken: {len(labeled):,} labelled images in all (DATASET.FEW clip)")
