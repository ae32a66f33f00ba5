"""What may be wrong with images of one's own: too few classes, unreadable files, test images used for training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import UsageError
from ..leaks import MAX_COMPARED, overlap, state
from ..predicting import printable

SPLITS = ("train", "val", "test")
MAX_OPENED = MAX_COMPARED


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
        raise UsageError(f"labelled images of {len(known)} classes ({known}): expected two or more")
    for split in ("val", "test"):
        strange = sorted({entry.class_id for entry in entries if entry.split == split}.difference(known))
        if strange:
            raise UsageError(
                f"{split} has {len(strange)} classes without a labelled image: {strange[:8]}, not in {known}"
            )


def check_files(entries: Sequence[Entry], root: Path) -> None:
    """Refuse files that are no images, and images that stand in two sets, by content."""
    few = len(entries) <= MAX_OPENED
    if not few:
        print(f"{len(entries):,} files: more than {MAX_OPENED:,} are not compared by content, only by path")
    bad = [entry.path for entry in entries if few and not _opens(*state(entry.path))]
    if bad:
        raise UsageError(
            f"{len(bad)} files are no images that can be read, first {printable(bad[0])}: remove or replace them"
        )
    sets = [[entry.path for entry in entries if entry.split == split] for split in SPLITS]
    twice = [
        printable(f"{os.path.relpath(one, root)} = {os.path.relpath(other, root)}")
        for pair in combinations(sets, 2)
        for one, other in overlap(*pair, content=few)
    ]
    if twice:
        raise UsageError(
            f"{len(twice)} images stand in two of training, val and test: {'; '.join(twice[:5])}"
            f"{'; ...' if len(twice) > 5 else ''}. Remove them from one"
        )


@cache  # a run reads its data set several times
def _opens(path: str, size: int, changed: int) -> bool:
    try:
        with Image.open(path):
            return True
    except (OSError, Image.DecompressionBombError):
        return False
