"""Files that grow by blocks, each with its checksum: what no record vouches for is not there, however it was left.

A writer has three files of its own, <writer>.views, <writer>.features and <writer>.blocks. The last has a record for
each block, written when the block's bytes in the other two are on the disk. What a killed writer left behind them is
passed over. A block that is not what its record says (zeros after a power cut, a changed byte) is named and not used.
"""

from __future__ import annotations

import os
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from .predicting import printable
from .sealed import sync

# How many entries a block has, and the CRC-32 of their names and of their features.
BLOCK = np.dtype([("entries", "<u4"), ("views", "<u4"), ("features", "<u4")])
BLOCKS, VIEWS, FEATURES = ".blocks", ".views", ".features"
SECONDS = 10.0  # after which a block ends: what a kill may cost


class Writer:
    """Appends entries to new files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begin()

    def _begin(self) -> None:
        self._file = self.folder / f"{os.getpid()}-{time.time_ns():x}{BLOCKS}"
        self._block, self._began = np.zeros(1, BLOCK), time.monotonic()

    def append(self, views: np.ndarray, features: np.ndarray) -> None:
        """Add entries; they are there once their block has ended.

        Args:
            views: (n,) names. features: (n, width).

        Raises:
            OSError: they cannot be written; what was appended before them stays.
        """
        try:
            block = self._block.copy()
            block["entries"] += len(views)
            for suffix, content in ((FEATURES, features), (VIEWS, views)):
                whole = np.ascontiguousarray(content).tobytes()
                with self._file.with_suffix(suffix).open("ab") as file:
                    file.write(whole)
                block[suffix[1:]] = zlib.crc32(whole, int(block[suffix[1:]][0]))
            self._block = block
        except BaseException:  # an interrupt too: behind what is there by half nothing may stand
            with suppress(OSError):
                self.end_block()
            self._begin()
            raise
        if time.monotonic() - self._began >= SECONDS:
            self.end_block()

    def end_block(self) -> None:
        """Wait until all that was appended is on the disk, and vouch for it.

        Raises:
            OSError: it cannot be written, and is lost.
        """
        block, self._block, self._began = self._block, np.zeros(1, BLOCK), time.monotonic()
        if not block["entries"][0]:
            return
        try:
            for suffix in (FEATURES, VIEWS):
                sync(self._file.with_suffix(suffix))
            with self._file.open("ab") as file:
                file.write(block.tobytes())
            sync(self._file)
            sync(self.folder)
        except BaseException:  # half a record
            self._begin()
            raise


class Shard:
    """What one writer has written.

    Args:
        path: its file of blocks. names: dtype of a view. width, dtype: of a feature.
        before: the same shard when it was last looked at, whose blocks are not looked at again.

    Attributes:
        views: (n,) names, zeros for an entry that is damaged. features: (n, width), mapped from the disk.
    """

    def __init__(self, path: Path, names: np.dtype, width: int, dtype: np.dtype, before: Shard | None) -> None:
        self.path = path
        blocks = records_of(path, BLOCK)  # first, since it is written last
        views = records_of(path.with_suffix(VIEWS), names).copy()
        features = _matrix(path.with_suffix(FEATURES), width, dtype)
        self._ends = np.cumsum(blocks["entries"], dtype=np.int64)
        there = int(np.searchsorted(self._ends, min(len(views), len(features)), side="right"))
        self._blocks, self._ends = blocks[:there], self._ends[:there]
        count = int(self._ends[-1]) if there else 0
        self.views, self.features = views[:count], features[:count]
        self._looked = np.zeros(there, dtype=bool)  # at features
        self._damaged = np.zeros(there, dtype=bool)
        known = 0
        if before is not None:
            known = min(there, len(before._looked))
            self._looked[:known], self._damaged[:known] = before._looked[:known], before._damaged[:known]
        self._recorded = len(blocks)
        if there < len(blocks) and (before is None or len(blocks) != before._recorded):
            print(printable(f"{path}: cut off behind entry {count:,}; what is missing is computed again"))
        for block in range(known, there):
            self._compare(block, VIEWS, self.views)
        for block in np.flatnonzero(self._damaged[:known]).tolist():
            self.views[self._part(block)] = np.zeros((), names)

    def look(self, rows: np.ndarray) -> bool:
        """Compare the features in the blocks of these entries with their checksums, once; False if some are damaged."""
        asked = np.zeros(len(self._looked), dtype=bool)
        asked[np.searchsorted(self._ends, rows, side="right")] = True
        new = np.flatnonzero(asked & ~self._looked).tolist()
        for block in new:
            self._looked[block] = True
            self._compare(block, FEATURES, self.features)
        return not self._damaged[new].any()

    def _part(self, block: int) -> slice:
        end = int(self._ends[block])
        return slice(end - int(self._blocks["entries"][block]), end)

    def _compare(self, block: int, suffix: str, content: np.ndarray) -> None:
        part = self._part(block)
        if zlib.crc32(content[part].tobytes()) == self._blocks[suffix[1:]][block]:
            return
        self._damaged[block] = True
        self.views[part] = np.zeros((), self.views.dtype)
        entries = f"{self.path.with_suffix(suffix)}: entries {part.start:,} to {part.stop - 1:,}"
        print(printable(f"{entries} are damaged, and computed again where they are needed"))


def records_of(path: Path, dtype: np.dtype) -> np.ndarray:
    """The whole records of a file, none where there is no file; a last one that is cut off is not there."""
    content = path.read_bytes() if path.exists() else b""
    return np.frombuffer(content, dtype=dtype, count=len(content) // dtype.itemsize)


def _matrix(path: Path, width: int, dtype: np.dtype) -> np.ndarray:
    rows = path.stat().st_size // (width * dtype.itemsize) if path.is_file() else 0
    return np.memmap(path, dtype=dtype, mode="r", shape=(rows, width)) if rows else np.empty((0, width), dtype)
