"""What may be wrong with images of one's own: too few classes, unreadable files, test images used for training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError
from ..leaks import MAX_COMPARED, overlaps, state
from ..predicting import printable
from ..views import fault

SPLITS = ("train", "val", "test")


class Entry(NamedTuple):
    """An image file, absolute. class_id: "" where it has no label. split: one of SPLITS."""

    path: str
    class_id: str
    split: str


def describe(root: Path, entries: Sequence[Entry], names: dict[str, str]) -> str:
    """How many images of which kind, and a digest of their places, sizes, labels and names."""
    named = {"val": "validation", "test": "test"}
    kinds = [named.get(entry.split, "labelled" if entry.class_id else "unlabelled") for entry in entries]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("labelled", "unlabelled", "validation", "test"))
    listing = [(os.path.relpath(e.path, root), os.path.getsize(e.path), e.class_id, e.split) for e in entries]
    digest = hashlib.sha256(repr((listing, sorted(names.items()))).encode()).hexdigest()
    return f"{counts}; {digest[:12]}"


def check_classes(entries: Sequence[Entry]) -> None:
    """Refuse fewer than two classes, and classes that only val or test has."""
    known = sorted({entry.class_id for entry in entries if entry.split == "train" and entry.class_id})
    if len(known) < 2:
        raise UsageError(
            f"labelled images of {len(known)} classes ({known}): expected two or more, each a folder of train/ or "
            "labeled/, or of the folder given, or a label of the table"
        )
    for split in ("val", "test"):
        strange = sorted({entry.class_id for entry in entries if entry.split == split}.difference(known))
        if strange:
            raise UsageError(
                f"{split} has {len(strange)} classes without a labelled image: {strange[:8]}, not among {len(known)}: "
                f"{known[:8]}"
            )


def check_files(entries: Sequence[Entry], root: Path, *, skip: bool = False) -> None:
    """Refuse files that are no images, and images that stand in two sets, by content.

    Args:
        skip: let unreadable training images be; they are passed over, and counted, when they are wanted.
    """
    few = len(entries) <= MAX_COMPARED
    if not few:
        print(f"{len(entries):,} files: more than {MAX_COMPARED:,} are not compared by content, only by path")
    looked_at = [entry.path for entry in entries if few and not (skip and entry.split == "train")]
    bad = [path for path in looked_at if _fault(*state(path))]
    if bad:
        raise UsageError(
            f"{len(bad)} files are no images that can be read, first {printable(bad[0])}: remove or replace them "
            "(INPUT.BAD_IMAGES skip lets training pass over a few)"
        )
    sets = {split: [entry.path for entry in entries if entry.split == split] for split in SPLITS}
    twice = [
        printable(f"{os.path.relpath(one, root)} = {os.path.relpath(other, root)}")
        for pairs in overlaps(sets, content=few).values()
        for one, other in pairs
    ]
    if twice:
        raise UsageError(
            f"{len(twice)} images stand in two of training, val and test: {'; '.join(twice[:5])}"
            f"{'; ...' if len(twice) > 5 else ''}. Remove them from one"
        )


@cache  # a run reads its data set several times
def _fault(path: str, size: int, changed: int) -> str:
    return fault(path, decode=False)
