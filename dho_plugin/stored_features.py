"""A frozen image tower looks at each view once: its features are computed before training, kept, and read in steps.

Views are pure functions of seed, image and pass (views.py), so that all a run will ask for is known before it starts.
Batches then name a view by its number among those of the run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .contents import Contents
from .distributed import agreed, main_first, rank, world_size
from .errors import UsageError
from .loaders import ViewSource
from .precision import Precision
from .predicting import progress
from .readers import Picture
from .stopping import check, deaf
from .store import VIEW, Model, Store, bytes_of_view, kept_dtype, same_views, view_records, weights_hash
from .text_memory import GIB, free_bytes
from .towers import VLM
from .views import View

BATCH = 64  # views that are computed at a time
PORTION = 2**16  # features read at a time: the host's memory need not hold what the device's does
SHARE = 0.25  # of the free memory that a run's features may take; beyond it they are read from disk in each step


class StoredFeatures:
    """The image features of a frozen CLIP model, of views by their numbers.

    Args:
        root: folder of all stores. vlm: the model, as it computes in this run. interpolation: readers.recipe of the
            views, which is part of them.
        precision: how the run computes.

    Attributes:
        vlm, store: of this model; equal models of a run share one.
    """

    def __init__(self, root: str, vlm: VLM, *, interpolation: str, precision: Precision, device: torch.device) -> None:
        self.vlm, self.precision, self.device = vlm, precision, device
        image, dtype = vlm.image, kept_dtype(precision.name)
        mean, std = tuple(image.mean), tuple(image.std)
        model = Model(
            vlm.name, weights_hash(vlm), image.size, mean, std, interpolation, precision.name, vlm.width, dtype
        )
        self.store = Store(root, model)
        self.bytes_per_view = bytes_of_view(vlm.width, precision.name)
        self._rows = self._slots = np.empty(0, dtype=np.int64)
        self._table: Tensor | None = None

    def __call__(self, numbers: Tensor) -> Tensor:
        """Features (n, width) of views by number (n,), float32, on the device.

        Raises:
            IndexError: a view that this run did not ask for.
        """
        if self._table is None:
            return self.store.read(self._rows[numbers.numpy()]).to(self.device).float()
        slots = torch.from_numpy(self._slots[numbers.numpy()])
        return self._table[slots.to(self.device, non_blocking=True)].float()

    def lacking(self, names: np.ndarray) -> np.ndarray:
        """Which of (n,) views are not stored yet: (n,) bool."""
        return self.store.rows(names) < 0

    @torch.no_grad()
    def add(self, names: np.ndarray, images: Tensor) -> None:
        """Compute and store the features of views (n,), given as uint8 (n, 3, size, size)."""
        with self.precision.autocast():
            self.store.append(names, self.vlm.features(images.to(self.device)))

    def open(self, names: np.ndarray, asked: np.ndarray) -> None:
        """Take views (n,) as those of numbers 0 to n - 1; of which this run will read those that `asked` (n,) has."""
        self.store.refresh()
        self._rows = np.where(asked, self.store.rows(names), -1)
        rows = self._rows[asked]
        if rows.min(initial=0) < 0:
            shared = ", with one STORE.DIR that all its processes see" if world_size() > 1 else ""
            raise UsageError(
                f"{self.store.folder} has lost views while this run looked at them: start it again{shared}"
            )
        self._table = None
        if len(rows) * self.bytes_per_view <= SHARE * free_bytes(self.device):
            # Beyond the table: an error, and no other view.
            self._slots = np.where(asked, np.cumsum(asked) - 1, len(rows))
            self._table = torch.empty(
                len(rows), self.vlm.width, dtype=getattr(torch, self.store.model.dtype), device=self.device
            )
            for start in range(0, len(rows), PORTION):
                part = slice(start, start + PORTION)
                self._table[part] = self.store.read(rows[part])


class Part(NamedTuple):
    """One source of a run's views: the first `positions` of its order are shown to each of `readers`."""

    source: ViewSource
    positions: int
    readers: Sequence[StoredFeatures]


def prepare(parts: Sequence[Part], contents: Contents, workers: int) -> None:
    """Number the views of a run, let sources name them by number, and compute what the stores lack.

    Several processes share the views among them by image, and each reads what all have written.

    Args:
        parts: the run's sources. contents: of the image files. workers: loader processes.

    Raises:
        UsageError: not enough room on the disk; an image that cannot be read.
    """
    needed = [part.source.needed(part.positions) for part in parts]
    found = [_named(part.source, asked, contents) for part, asked in zip(parts, needed, strict=True)]
    names, numbers = same_views(np.concatenate(found))
    files = np.empty((len(names), 2), dtype=np.int64)  # of each view: a part, and the index of a file that has it
    asked_by = {id(reader): (reader, np.zeros(len(names), dtype=bool)) for part in parts for reader in part.readers}
    start = 0
    for which, (part, asked) in enumerate(zip(parts, needed, strict=True)):
        own = numbers[start : start + int(asked.sum())]
        part.source.numbers = np.full(asked.shape, len(names))  # no view's number: an error, and not the last view
        part.source.numbers[asked] = own
        files[own, 0], files[own, 1] = which, np.nonzero(asked)[1]
        for reader in part.readers:
            asked_by[id(reader)][1][own] = True
        start += len(own)
    jobs = [_Job(reader, asked & reader.lacking(names)) for reader, asked in asked_by.values()]
    _check_room(jobs)
    mine = names["image"] % world_size() == rank()  # by image, so that none is decoded twice
    shares = [_Job(reader, lacking & mine) for reader, lacking in jobs]
    _fill(shares, _Views([part.source for part in parts], names, files, shares), workers)
    agreed(0)  # the others' shares are written too
    for reader, asked in asked_by.values():
        reader.open(names, asked)


def _named(source: ViewSource, asked: np.ndarray, contents: Contents) -> np.ndarray:
    """Names of a source's views, (n,) of dtype VIEW, in the order of np.nonzero(asked)."""
    each = np.flatnonzero(asked.any(axis=0))
    with main_first():  # what the first process learns of the files, the others read
        files = contents.of([source.paths[index] for index in each.tolist()])
    sizes = np.stack([files["width"], files["height"]], axis=1).astype(np.int64)
    found = [view_records(files["image"][at], boxes) for at, boxes in source.boxes(asked[:, each], each, sizes)]
    return np.concatenate([np.empty(0, dtype=VIEW), *found])


class _Job(NamedTuple):
    """reader: who computes. lacking: which of the run's views, (n,) bool."""

    reader: StoredFeatures
    lacking: np.ndarray


class _Views(Dataset):
    """Item `start`: views from there on, together those that the same jobs lack: numbers (k,), and views by job."""

    def __init__(
        self, sources: Sequence[ViewSource], names: np.ndarray, files: np.ndarray, jobs: Sequence[_Job]
    ) -> None:
        self.sources, self.names, self.files, self.reader = sources, names, files, sources[0].reader
        self.lacking = np.stack([job.lacking for job in jobs])
        self.sizes = [job.reader.vlm.image.size for job in jobs]
        self.rows = np.flatnonzero(self.lacking.any(axis=0))

    def __getitem__(self, start: int) -> list[tuple[Tensor, dict[str, Any]]]:
        chosen = self.rows[start : start + BATCH]
        found = []
        for pattern in np.unique(self.lacking[:, chosen], axis=1).T:
            rows = chosen[(pattern == self.lacking[:, chosen].T).all(axis=1)]
            sizes = {str(job): self.sizes[job] for job in np.flatnonzero(pattern).tolist()}
            found.append((torch.from_numpy(rows), self.reader.views(self._pictures(rows.tolist()), len(rows), sizes)))
        return found

    def path(self, row: int) -> str:
        """A file that has the view of a number."""
        part, index = self.files[row].tolist()
        return self.sources[part].paths[index]

    def _pictures(self, rows: Sequence[int]) -> Iterator[tuple[Picture, View]]:
        last: tuple[int, Picture] | None = None
        for row in rows:
            content, left, top, width, height, flip = self.names[row].tolist()
            if last is None or last[0] != content:  # views of an image stand together
                last = content, self.reader.open(self.path(row))
            yield last[1], View(left, top, width, height, bool(flip))


def _check_room(jobs: Sequence[_Job]) -> None:
    """Say what is to be computed by all processes; refuse if the disk has no room."""
    total = 0
    for reader, lacking in jobs:
        stored, missing = len(reader.store), int(lacking.sum())
        size = missing * reader.bytes_per_view
        print(f"{reader.vlm.name}: {stored:,} views stored, {missing:,} to be computed, {size / GIB:.2f} GiB")
        total += size
    root = jobs[0].reader.store.folder.parent
    short = agreed(total - shutil.disk_usage(root).free)  # one look for all, since others write soon
    if short > 0:
        views = int(np.logical_or.reduce([job.lacking for job in jobs]).sum())
        raise UsageError(
            f"{views:,} views need {total / GIB:.1f} GiB in {root}, where {(total - short) / GIB:.1f} are free: give "
            "STORE.DIR another folder, or take fewer views (STORE.VIEWS)"
        )


def _fill(jobs: Sequence[_Job], views: _Views, workers: int) -> None:
    started, done = time.monotonic(), 0
    each = f" of this process, one of {world_size()}," if world_size() > 1 else ""
    try:
        for done, _ in enumerate(progress(_computed(jobs, views, workers), len(views.rows)), 1):
            if done == BATCH < len(views.rows):
                all_ = (time.monotonic() - started) * len(views.rows) / done
                print(f"By the first {done} views all {len(views.rows):,}{each} take about {_duration(all_)}")
    finally:
        for job in jobs:
            job.reader.store.end_block()
    if done:
        print(f"Computed in {_duration(time.monotonic() - started)}, in {jobs[0].reader.store.folder.parent}")


def _computed(jobs: Sequence[_Job], views: _Views, workers: int) -> Iterator[None]:
    """Compute and store; an item for each view."""
    starts = range(0, len(views.rows), BATCH)
    loader = DataLoader(
        views, batch_size=None, sampler=starts, num_workers=min(workers, len(starts)), worker_init_fn=deaf
    )
    rounds = agreed(len(starts))  # shares differ, and a process that has done its own still asks with the others
    loaded = iter(loader)
    for start in range(0, rounds * BATCH, BATCH):
        check("while STORE.DIR was filled")
        for rows, batch in next(loaded, ()):
            views.reader.receive(batch, [views.path(row) for row in rows.tolist()])
            for job, images in batch.items():
                jobs[int(job)].reader.add(views.names[rows.numpy()], images)
        yield from views.rows[start : start + BATCH]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
