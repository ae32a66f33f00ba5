"""What is there of a data set, and whether a run would start: by building it, and by a look at its files."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from .. import cli, datasets
from ..classes import class_list
from ..datasets.catalogue import PUBLISHED, SplitByFile
from ..datasets.imagenet import class_names
from ..datasets.layouts import NEAR, Place, elsewhere
from ..datasets.own_files import images_below
from ..errors import UsageError
from ..host import build_dataset
from ..leaks import MAX_COMPARED, overlaps
from ..pool import check_shots, check_trainable, copy_policy
from .files import SHOWN, caches, unreadable

SHOTS = 16
MISSING = "missing images:"
TESTING_ONLY = tuple(datasets.SHIFTS["ImageNet"].values())


class Found(NamedTuple):
    """A set's state: "found", "partly found" or "missing"; what keeps a run from starting or going on; and findings.

    A line of `lines` may hold any character that a file name may.
    """

    state: str
    obstacle: str
    lines: list[str]


class Wishes(NamedTuple):
    """decode: decode every image. content: compare all sets byte by byte."""

    decode: bool = False
    content: bool = False


def examine(name: str, root: Path, wishes: Wishes) -> Found:
    """One of the fifteen sets, by the name of its yaml file; whatever is wrong with it becomes a line."""
    try:
        cfg = cli.build_config(cli.parser().parse_args(["--trainer", "CoOp", "--dataset", name, "--root", str(root)]))
        kind: Any = datasets.CLASSES.get(cfg.DATASET.NAME) or getattr(datasets, cfg.DATASET.NAME)
        place = kind.place(root)
        state, lines = _pieces(kind, place, root)
        get = f"get it: python -m dho_plugin data fetch --dataset {name} --root {shlex.quote(str(root))}"
        if state == "missing":
            return Found(state, "it is missing", [*lines, get])
        dataset, obstacle = _build(cfg, trains=cfg.DATASET.NAME not in TESTING_ONLY)
        if dataset is None:
            lines += _listed(kind, place, root, cfg.DATASET.NAME)
            if state != "found":
                lines.append(get)
            elif any(line.startswith(MISSING) for line in lines):
                lines.append(f"copy them, or move {place.images} away and {get}")
            files = _listed_files(kind, place, root)
        else:
            lines += _contents(dataset, cfg.DATASET.NAME, wishes)
            files = _files(dataset)
        bad, line = unreadable(files, decode=wishes.decode)
        state = "partly found" if dataset is None else "found"
        return Found(state, obstacle or _stops(bad), [*lines, *line, *caches(place.base)])
    except Exception as error:  # one set's trouble, of whatever kind, is no reason to be silent on the others
        return Found("partly found", _said(error), [])


def examine_own(data: str, wishes: Wishes) -> Found:
    """Images of one's own, as --data takes them."""
    try:
        cfg = cli.build_config(cli.parser().parse_args(["--trainer", "CoOp", "--data", data]))
        dataset, obstacle = _build(cfg, trains=True)
        if dataset is None:
            return Found("partly found", obstacle, [])
        bad, line = unreadable(_files(dataset), decode=wishes.decode)
        return Found("found", obstacle or _stops(bad), [*_contents(dataset, "", wishes), *line])
    except Exception as error:
        return Found("partly found", _said(error), [])


def _build(cfg: Any, *, trains: bool) -> tuple[Any, str]:
    """The set as a run builds it, None if it cannot; and what a trainer would say before it trains."""
    dataset = None
    try:
        with redirect_stdout(io.StringIO()):
            dataset = build_dataset(cfg)
            if trains:
                check_trainable(dataset, final_model=cfg.TEST.FINAL_MODEL, copies=copy_policy(cfg))
                check_shots(dataset.train_x, cfg.DATASET.NUM_SHOTS, dataset.lab2cname)
    except Exception as error:
        return dataset, _said(error)
    return dataset, ""


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"


def _stops(bad: int) -> str:
    return f"{bad:,} of its images cannot be read" if bad else ""


# Where it lies


def _pieces(kind: Any, place: Place, root: Path) -> tuple[str, list[str]]:
    """The state as far as folders tell, and where images and list are or were looked for."""
    by_file = issubclass(kind, SplitByFile)
    list_ = place.lists / (kind.described.lists if by_file else "classnames.txt")
    misplaced = by_file and not list_.is_file() and elsewhere(root, list_.name)
    if not (place.found or _has_entries(place.images) or list_.is_file() or misplaced):
        near = NEAR[place.usual.relative_to(root).parts[0]]
        others = ", ".join(dict.fromkeys((*near.folders, *filter(None, near.images))))
        lines = [f"looked for: {place.images}/{near.marker} and {list_}"]
        return "missing", [*lines, f"other names that will do, also one folder deeper: {others}"]
    lines = [f"images: {place.images}" if place.found else f"images: none at {place.images}"]
    if place.note():
        lines[0] = f"images: {place.note()}"
    if by_file and not list_.is_file():
        return "found" if misplaced else "partly found", [*lines, f"list: none at {list_}"]
    lines.append(f"list: {list_ if list_.is_file() else class_names(root, place)[1]}")
    return "found" if place.found else "partly found", lines


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def _rows(kind: Any, place: Place, root: Path) -> dict[str, list[Any]]:
    if not issubclass(kind, SplitByFile):
        return {}
    try:
        return kind.rows(root, place)[1]
    except (UsageError, UnicodeDecodeError):  # the reader has said so
        return {}


def _listed(kind: Any, place: Place, root: Path, name: str) -> list[str]:
    """Of a set that cannot be built: what its lists have, and which of those images are missing."""
    rows = _rows(kind, place, root)
    if not rows:
        return []
    paths = [place.images / row.path for split in rows.values() for row in split]
    missing = [path for path in paths if not path.is_file()]
    classes = len({row.label for split in rows.values() for row in split})
    lines = [_counts((classes, *map(len, rows.values())), name)]
    if missing:
        first = ", ".join(str(path) for path in missing[:SHOWN])
        lines.append(f"{MISSING} {len(missing):,} of the {len(paths):,} listed, first {first}")
        others = elsewhere(place.base, missing[0].name)
        if others:
            lines.append(f"a {missing[0].name} lies in {others[0].parent}: the images of {missing[0].parent}?")
    return lines


def _listed_files(kind: Any, place: Place, root: Path) -> list[str]:
    rows = _rows(kind, place, root)
    if not rows:
        return images_below(place.images) if place.found else []
    paths = (str(place.images / row.path) for split in rows.values() for row in split)
    return sorted({path for path in paths if os.path.isfile(path)})


# What it holds


def _files(dataset: Any) -> list[str]:
    sets = (dataset.train_x, dataset.train_u, dataset.val, dataset.test)
    return sorted({item.impath for items in sets for item in items or []})


def _contents(dataset: Any, name: str, wishes: Wishes) -> list[str]:
    """Of a set that was built: counts, classes, shots, and images in two of its splits."""
    sets = {"train": dataset.train_x, "val": dataset.val or [], "test": dataset.test or []}
    if name in TESTING_ONLY:
        sets["train"] = []
    same = bool(sets["val"]) and {item.impath for item in sets["val"]} == {item.impath for item in sets["test"]}
    if same:  # ImageNet's test set is its validation set, and CoOp returns it as both
        sets["val"] = []
    counts = dataset.num_classes, *map(len, sets.values())
    lines = [_counts(counts, name) if name else _own_counts(dataset), _order(dataset, name)]
    if name in TESTING_ONLY:
        return [*lines, "for testing only: train.py --ood and --eval-only"]
    lines.append(_shots(sets["train"], dataset.lab2cname))
    return [*lines, *_shared({split: [item.impath for item in items] for split, items in sets.items()}, wishes)]


def _counts(counts: Sequence[int], name: str) -> str:
    def said(numbers: Sequence[int]) -> str:
        return "{:,} classes; train {:,}, val {:,}, test {:,}".format(*numbers)

    if tuple(counts) == PUBLISHED[name]:
        return f"counts: {said(counts)}, as in the paper's Table 10"
    return f"counts: {said(counts)}; Table 10 has {said(PUBLISHED[name])}: results do not compare with published ones"


def _own_counts(dataset: Any) -> str:
    unlabeled = len({item.impath for item in dataset.train_u or []} - {item.impath for item in dataset.train_x})
    return (
        f"counts: {dataset.num_classes:,} classes; {len(dataset.train_x):,} labelled, {unlabeled:,} unlabelled, "
        f"{len(dataset.val or []):,} validation, {len(dataset.test or []):,} test images"
    )


def _order(dataset: Any, name: str) -> str:
    classes = class_list(dataset)
    rule = {"ImageNetV2": " (folders by number)"}.get(name, " (by WordNet id)" if name.startswith("ImageNet") else "")

    def said(label: int) -> str:
        id_, class_name = classes.ids[label], classes.names[label]
        return f"{label} {class_name}" if id_ == class_name else f"{label} {id_} {class_name}"

    return f"class order: {said(0)} ... {said(len(classes.names) - 1)}{rule}"


def _shots(labeled: Sequence[Any], names: dict[int, str]) -> str:
    counts = Counter(item.label for item in labeled)
    try:
        check_shots(labeled, SHOTS, names)
    except UsageError as error:
        return f"shots: {error}"
    return f"shots: up to {min(counts[label] for label in names):,} a class"


def _shared(sets: dict[str, list[str]], wishes: Wishes) -> Iterator[str]:
    content = wishes.content or sum(map(len, sets.values())) <= MAX_COMPARED
    how = "by content" if content else "by path; --content compares bytes"
    if sum(map(len, sets.values())) > MAX_COMPARED and content:
        print("comparing train, val and test by content", file=sys.stderr)
    found = {pair: images for pair, images in overlaps(sets, content=content).items() if images}
    for (one, other), images in found.items():
        first, second = images[0]
        yield f"overlap: {len(images):,} {other} images are {one} images ({how}), first {first} = {second}"
    if not found:
        yield f"overlap: no image stands in two of train, val and test ({how})"
