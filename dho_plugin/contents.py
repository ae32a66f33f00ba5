"""What image files hold, by which stored features are known: read once for each size and time of change of a file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .blocks import records_of
from .hashing import hash64
from .predicting import printable, progress
from .stopping import check
from .store import Index, using
from .views import image_size, opened

# A file that has been read: a hash of its path, its size and time of change; the hash of its bytes, and its pixels; and
# a hash of all these, by which a damaged record is known.
_KNOWN = [("path", "<u8"), ("size", "<u8"), ("changed", "<i8"), ("image", "<u8"), ("width", "<u4"), ("height", "<u4")]
FILE = np.dtype([*_KNOWN, ("check", "<u8")])
THREADS, PORTION = 8, 4096  # that read image files at a time; files after which what was learned is written down


class Contents:
    """What image files hold, read once for each size and time of change of a file.

    Args:
        root: the stores' folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root).expanduser() / "files"
        with using(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._own = self.folder / f"{os.getpid()}-{time.time_ns():x}.files"

    def of(self, paths: Sequence[str]) -> np.ndarray:
        """The content of each file: (n,) of dtype FILE. Files not seen before are read, and their progress is said.

        Raises:
            UnreadableImage: a file is missing, or no image.
            UsageError: the store's folder cannot be read or written.
        """
        found = np.array([(*opened(path, _file), 0, 0, 0, 0) for path in paths], dtype=FILE)
        known = Index(self._records(), ("path", "size", "changed"))
        rows = known.rows(found)
        found[rows >= 0] = known.records[rows[rows >= 0]]
        new = np.flatnonzero(rows < 0).tolist()
        if new:
            print(f"Reading {len(new):,} image files, by whose content stored features are known")
            for _ in progress(self._read(found, paths, new), len(new)):
                pass
        return found

    def _records(self) -> np.ndarray:
        """What was learned of files before; damaged records are named and left out."""
        whole = [np.empty(0, FILE)]
        for path in sorted(self.folder.glob("*.files")):
            with using(self.folder):
                records = records_of(path, FILE)
            good = records["check"] == _check(records)
            if not good.all():
                print(printable(f"{path}: {int((~good).sum()):,} records are damaged, and those images read again"))
            whole.append(records[good])
        return np.concatenate(whole)

    def _read(self, found: np.ndarray, paths: Sequence[str], new: Sequence[int]) -> Iterator[None]:
        with ThreadPoolExecutor(THREADS) as pool, using(self.folder), self._own.open("ab") as file:
            for start in range(0, len(new), PORTION):
                check("while image files were read", alone=True)
                portion = new[start : start + PORTION]
                for row, content in zip(portion, pool.map(_content, [paths[row] for row in portion]), strict=True):
                    found[row] = (*found[row].tolist()[:3], *content, 0)
                    yield
                found["check"][portion] = _check(found[portion])
                file.write(found[portion].tobytes())
            file.flush()
            os.fsync(file.fileno())


def _check(records: np.ndarray) -> np.ndarray:
    return hash64(*(records[name] for name, _ in _KNOWN))


def _file(path: str) -> tuple[int, int, int]:
    """A file's "path", "size" and "changed" in FILE."""
    status, name = os.stat(path), os.path.abspath(path).encode("utf-8", "surrogateescape")
    place = hashlib.blake2b(name, digest_size=8).digest()
    return int.from_bytes(place, "little"), status.st_size, status.st_mtime_ns


def _content(path: str) -> tuple[int, int, int]:
    """A file's "image", "width" and "height" in FILE."""
    size = image_size(path)
    digest = hashlib.blake2b(opened(path, lambda path: Path(path).read_bytes()), digest_size=8).digest()
    return (int.from_bytes(digest, "little"), *size)
