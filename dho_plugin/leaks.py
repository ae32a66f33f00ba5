"""Images that stand in two sets: the same file, through links too, or a copy of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .errors import UsageError
from .predicting import printable

# In larger sets files are not opened before they are needed, and compared by path alone.
MAX_COMPARED = 20_000


def overlap(first: Sequence[str], second: Sequence[str], *, content: bool | None = None) -> list[tuple[str, str]]:
    """Pairs (of first, of second) that are one image, in second's order.

    Args:
        content: compare bytes and not paths alone; None: where both sets together have at most MAX_COMPARED files.
            Bytes are read only of files whose size both sets have.
    """
    if content is None:
        content = len(first) + len(second) <= MAX_COMPARED
    if not content:
        folders: dict[str, tuple[str, set[str]]] = {}
        known = {_real(path, folders): path for path in first}
        real = {path: _real(path, folders) for path in second}
        return [(known[real[path]], path) for path in second if real[path] in known]
    sizes = {os.path.getsize(path) for path in first} & {os.path.getsize(path) for path in second}
    alike = [[path for path in paths if os.path.getsize(path) in sizes] for paths in (first, second)]
    seen = {digest(path): path for path in alike[0]}
    return [(seen[digest(path)], path) for path in alike[1] if digest(path) in seen]


def _real(path: str, folders: dict[str, tuple[str, set[str]]]) -> str:
    """os.path.realpath, for which each folder is looked at once instead of each file."""
    parent, name = os.path.split(os.path.abspath(path))
    if parent not in folders:
        try:
            with os.scandir(parent) as entries:
                links = {entry.name for entry in entries if entry.is_symlink()}
        except OSError:  # a missing file is said when it is read
            links = set()
        folders[parent] = os.path.realpath(parent), links
    folder, links = folders[parent]
    return os.path.realpath(path) if name in links else os.path.join(folder, name)


def state(path: str) -> tuple[str, int, int]:
    """A file with its size and its time of change, by which what was read of it may be kept."""
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def digest(path: str) -> str:
    """SHA-256 of a file's bytes; the path of a file that cannot be read."""
    return _digest(*state(path))


@cache  # a run reads its data set several times
def _digest(path: str, size: int, changed: int) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:  # like no other; that it cannot be read is said when it is wanted
        return path


def check_apart(images: Sequence[str], test: Sequence[str], kind: str, remedy: str) -> None:
    """Refuse images of a kind, such as "labelled", that are test images.

    Raises:
        UsageError: some are; it names the first and says the remedy.
    """
    if len(images) + len(test) > MAX_COMPARED:
        print(f"More than {MAX_COMPARED:,} {kind} and test images: compared by path, not by content")
    found = overlap(images, test)
    if found:
        pairs = "; ".join(f"{printable(one)} = {printable(other)}" for one, other in found[:3])
        raise UsageError(
            f"{len(found):,} {kind} images are test images ({pairs}{'; ...' if len(found) > 3 else ''}): {remedy}"
        )
