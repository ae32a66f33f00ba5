"""Images that stand in two sets: the same file, through links too, or a copy of it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

from .errors import UsageError
from .predicting import printable

# In larger sets files are not opened before they are needed, and compared by path alone.
MAX_COMPARED = 20_000


def overlap(first: Sequence[str], second: Sequence[str], *, content: bool | None = None) -> list[tuple[str, str]]:
    """Pairs (of first, of second) that are one image, in second's order; see overlaps."""
    return overlaps({"first": first, "second": second}, content=content)[("first", "second")]


def overlaps(
    sets: Mapping[str, Sequence[str]], *, content: bool | None = None
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Images that stand in two sets of files: for each two names, the pairs of paths that are one image.

    Args:
        sets: files by the set's name; the largest set is best given last.
        content: compare bytes and not paths alone; None: where all sets together have at most MAX_COMPARED files.
            Bytes are read only of files whose size two sets have.
    """
    if content is None:
        content = sum(map(len, sets.values())) <= MAX_COMPARED
    same = _contents(sets) if content else _places(sets)
    found = {}
    for one, other in combinations(sets, 2):
        known = dict(zip(same[one], sets[one], strict=True))
        both = zip(same[other], sets[other], strict=True)
        found[one, other] = [(known[identity], path) for identity, path in both if identity in known]
    return found


def _contents(sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each file the digest of its bytes; its path where no other set has a file of its size."""
    sizes = {name: [os.path.getsize(path) for path in paths] for name, paths in sets.items()}
    count = Counter(size for found in sizes.values() for size in set(found))
    return {
        name: [digest(path) if count[size] > 1 else path for path, size in zip(paths, sizes[name], strict=True)]
        for name, paths in sets.items()
    }


def _places(sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each file os.path.realpath, for which each folder is looked at once instead of each file."""
    folders: dict[str, tuple[str, set[str]]] = {}

    def real(path: str) -> str:
        parent, name = os.path.split(path)
        if parent not in folders:
            try:
                with os.scandir(parent or ".") as entries:
                    links = {entry.name for entry in entries if entry.is_symlink()}
            except OSError:  # a missing file is said when it is read
                links = set()
            folders[parent] = os.path.realpath(parent), links
        folder, links = folders[parent]
        return os.path.realpath(path) if name in links else path if folder == parent else os.path.join(folder, name)

    return {name: [real(path) for path in paths] for name, paths in sets.items()}


def state(path: str) -> tuple[str, int, int]:
    """A file with its size and its time of change, by which what was read of it may be kept."""
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def digest(path: str) -> str:
    """SHA-256 of a file's bytes; the path of a file that is empty or cannot be read, and so is like no other."""
    return _digest(*state(path))


@cache  # a run reads its data set several times
def _digest(path: str, size: int, changed: int) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if size else path
    except OSError:  # which is said when it is wanted
        return path


def check_apart(images: Sequence[str], test: Sequence[str], kind: str, remedy: str, copies: str = "stop") -> list[str]:
    """Refuse images of a kind, such as "labelled", that are test images.

    Args:
        copies: "allow" lets pass what has the bytes of a test image and is another file, and prints how many do; some
            benchmarks were published with such.

    Returns:
        The images that were let pass.

    Raises:
        UsageError: some are; it names the first and says the remedy.
    """
    if len(images) + len(test) > MAX_COMPARED:
        print(f"More than {MAX_COMPARED:,} {kind} and test images: compared by path, not by content")
    found = [(image, same) for same, image in overlap(test, images)]
    if not found:
        return []
    if not overlap(test, images, content=False):
        if copies == "allow":
            print(f"{len(found):,} {kind} images are copies of test images (DATASET.TEST_COPIES allow)")
            return [image for image, _ in found]
        remedy += "; or, where a benchmark was published with such copies, set DATASET.TEST_COPIES allow"
    pairs = "; ".join(f"{printable(one)} = {printable(other)}" for one, other in found[:3])
    raise UsageError(
        f"{len(found):,} {kind} images are test images ({pairs}{'; ...' if len(found) > 3 else ''}): {remedy}"
    )
