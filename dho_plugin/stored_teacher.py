"""A zero-shot teacher that looks at each view once: its features are computed before training, kept, and read in steps.

Views are pure functions of seed, image and pass (views.py), so that all a run will ask for is known before it starts.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .errors import UsageError
from .loaders import StepBatches, ViewSource
from .precision import Precision
from .predicting import progress
from .store import VIEW, Contents, Model, Store, view_records, weights_hash
from .teachers import Teacher, ZeroShotTeacher
from .views import View

BATCH = 64  # views that are computed at a time
GIB = 2**30


class StoredTeacher(Teacher):
    """A teacher that is shown names of views instead of views: uint8 (N, 17), as batches hold them (store.VIEW).

    Args:
        root: folder of all stores. teacher: whose features are kept. interpolation: readers.recipe of the views, which
            is part of them. precision: how the run computes.

    Raises:
        UsageError: a teacher that is no zero-shot CLIP.
    """

    def __init__(
        self, root: str, teacher: Teacher, *, interpolation: str, precision: Precision, device: torch.device
    ) -> None:
        super().__init__()
        if not isinstance(teacher, ZeroShotTeacher):
            raise UsageError(
                "STORE.DIR keeps what a zero-shot CLIP says; this teacher is a finished run: leave it empty"
            )
        self.teacher, self.precision, self.device = teacher, precision, device
        self.size, self.width, self.prompts_sha256 = teacher.size, teacher.width, teacher.prompts_sha256
        image = teacher.vlm.image
        model = Model(
            teacher.vlm.name,
            weights_hash(teacher.vlm),
            image.size,
            tuple(image.mean),
            tuple(image.std),
            interpolation,
            precision.name,
            teacher.width,
            "float32" if precision.name == "fp32" else "float16",
        )
        self.store, self.contents = Store(root, model), Contents(root)

    def features(self, images: Tensor) -> Tensor:
        names = np.ascontiguousarray(images.cpu().numpy()).view(VIEW)[:, 0]
        return self.store.read(self.store.rows(names)).to(self.device).float()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self.teacher.head(self.features(images))

    def directions(self) -> Tensor:
        return self.teacher.directions()

    def prepare(self, batches: StepBatches, steps: int, workers: int) -> None:
        """Let the batches name their views, and compute what the run's first to `steps`-th step lack."""
        parts = [(batches.labeled, batches.batch_size)]
        if batches.unlabeled is not None:
            parts.append((batches.unlabeled, batches.unlabeled_size))
        jobs: list[tuple[ViewSource, np.ndarray, np.ndarray]] = []
        for source, size in parts:
            found = self.contents.of(source.paths)
            source.images = np.array([content.image for content in found], dtype=np.uint64)
            pairs = list(needed(source, steps * size))
            names = view_records(
                [found[index].image for index, _ in pairs],
                [source.view(index, pass_, found[index].width, found[index].height) for index, pass_ in pairs],
            )
            lacking = self.store.rows(names) < 0
            indices = np.array([index for index, _ in pairs], dtype=np.int64)
            names, first = np.unique(names[lacking], return_index=True)
            jobs.append((source, indices[lacking][first], names))
        self._fill(jobs, workers)

    def _fill(self, jobs: Sequence[tuple[ViewSource, np.ndarray, np.ndarray]], workers: int) -> None:
        missing = sum(len(names) for _, _, names in jobs)
        size = missing * (VIEW.itemsize + self.teacher.width * np.dtype(self.store.model.dtype).itemsize)
        free = shutil.disk_usage(self.store.folder).free
        if size > free:
            raise UsageError(
                f"{missing:,} views of the teacher need {size / GIB:.1f} GiB in {self.store.folder}, where "
                f"{free / GIB:.1f} are free: give STORE.DIR another folder, or fewer views (STORE.VIEWS)"
            )
        print(f"Teacher's views: {len(self.store):,} stored, {missing:,} to be computed, {size / GIB:.2f} GiB")
        if not missing:
            return
        started = time.monotonic()
        with torch.no_grad(), self.precision.autocast():
            for _ in progress(self._computed(jobs, workers), missing):
                pass
        self.store.refresh()
        print(
            f"Teacher's views: computed in {time.monotonic() - started:.0f} s, in {self.store.folder}", file=sys.stderr
        )

    def _computed(
        self, jobs: Sequence[tuple[ViewSource, np.ndarray, np.ndarray]], workers: int
    ) -> Iterator[dict[str, Any]]:
        for source, indices, names in jobs:
            views = _Views(source, indices, names, self.teacher.size)
            starts = range(0, len(names), BATCH)
            loader = DataLoader(views, batch_size=None, sampler=starts, num_workers=min(workers, len(starts)))
            for start, batch in zip(starts, loader, strict=True):
                images = source.receive(batch)["img"]
                self.store.append(names[start : start + BATCH], self.teacher.features(images.to(self.device)))
                yield from ({} for _ in images)


class _Views(Dataset):
    """Item `start` is the teacher's views from there on, for the source's `receive`."""

    def __init__(self, source: ViewSource, indices: np.ndarray, names: np.ndarray, size: int) -> None:
        self.source, self.indices, self.names, self.size = source, indices, names, size

    def __getitem__(self, start: int) -> dict[str, Any]:
        chosen = slice(start, start + BATCH)
        rows = self.names[chosen].tolist()
        views = [View(left, top, width, height, bool(flip)) for _, left, top, width, height, flip in rows]
        return self.source.cut(self.indices[chosen].tolist(), views, self.size)


def needed(source: ViewSource, positions: int) -> Iterator[tuple[int, int]]:
    """(index, pass) of all views that the first `positions` of a source's order ask for, each once."""
    whole, rest = divmod(positions, len(source.paths))
    seen = {source.view_pass(pass_) for pass_ in range(whole)}
    for pass_ in sorted(seen):
        yield from ((index, pass_) for index in range(len(source.paths)))
    if source.view_pass(whole) not in seen:
        for position in range(positions - rest, positions):
            yield source.order[position][0], source.view_pass(whole)
