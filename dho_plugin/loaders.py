"""From a Dassl dataset to batches: the training batch of global step k is a pure function of (seed, k)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode

from .distributed import share
from .host import Datum
from .predicting import printable
from .readers import CPU, Picture, Reader
from .stopping import deaf
from .views import Order, UnreadableImage, View, ViewPolicy, center_view, draw_view, draw_views, image_key, read_image

# What INPUT.BAD_IMAGES means for training: stop at a file that cannot be read, or let the next image of the order take
# its place, up to one file in a thousand of the set (one at least, 100 at most). An evaluation is over the whole set.
BAD_IMAGES = ("stop", "skip")
PORTION = 2**14  # views drawn at a time: a run may have millions, and each takes a kilobyte while it is drawn


class Sizes(NamedTuple):
    """Resolutions in pixels of the student's and of the teacher's view; for None none is made."""

    student: int | None
    teacher: int | None = None


class ViewSource:
    """A set of images in an endless order, cut into views: one decode for each image, whatever the number of sizes.

    Args:
        paths: image files. root: dataset root, from which images get their identity. sizes, policy, interpolation:
            what to cut. seed: the run's seed. stream: 0 for labelled, 1 for unlabelled images. bad_images: see
            BAD_IMAGES. views: number of views of an image, after which they come again; 0 for one in each pass.
        reader, device: see readers.Reader.

    Attributes:
        unreadable: indices of files that batches passed over, as far as they were counted.
        numbers: (passes, images) int64, by which batches call views whose features are stored; None where none are.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        root: str,
        sizes: Sizes,
        policy: ViewPolicy,
        interpolation: InterpolationMode,
        seed: int,
        stream: int,
        bad_images: str = "stop",
        views: int = 0,
        reader: str = "pil",
        device: torch.device = CPU,
    ) -> None:
        self.paths = list(paths)
        self.views = views
        self.numbers: np.ndarray | None = None
        self.unreadable: set[int] = set()
        self.allowed = min(100, max(1, len(self.paths) // 1000)) if bad_images == "skip" else 0
        self.root, self.sizes, self.policy, self.interpolation, self.seed = root, sizes, policy, interpolation, seed
        self.reader = Reader(reader, interpolation, device)
        self.order = Order(len(self.paths), seed=seed, stream=stream)

    def batch(self, start: int, count: int) -> dict[str, Any]:
        """Views at `count` positions of the endless order, for `receive`.

        Returns:
            "index": (count,); "img": uint8 (count, 3, s, s) and "img_teacher": uint8 (count, 3, t, t), those of them
            that `sizes` has, which under reader cuda `receive` makes; "view": (count,) int64 where `numbers` is set;
            "skipped": indices of files that were passed over, if there are any. Without sizes no file is opened.

        Raises:
            UnreadableImage: see BAD_IMAGES.
        """
        skipped: set[int] = set()
        indices, passes = self.order.span(start, count)

        def pictures() -> Iterator[tuple[Picture, View]]:
            for row in range(count):
                indices[row], passes[row], picture = self._read(start + row, skipped)
                pass_ = self.view_pass(int(passes[row]))
                yield picture, self.view(int(indices[row]), pass_, picture.width, picture.height)

        sizes = {key: size for key, size in zip(("img", "img_teacher"), self.sizes, strict=True) if size}
        batch = self.reader.views(pictures(), count, sizes) if sizes else {}
        batch["index"] = torch.from_numpy(indices)
        if self.numbers is not None:
            batch["view"] = torch.from_numpy(self.numbers[self.view_pass(passes), indices])
        if skipped:
            batch["skipped"] = torch.tensor(sorted(skipped))
        return batch

    def view_pass(self, pass_: Any) -> Any:
        """The pass, or array of passes, whose views a pass sees."""
        return pass_ % self.views if self.views else pass_

    def view(self, index: int, pass_: int, width: int, height: int) -> View:
        """The view of an image of width x height pixels in a pass of view_pass."""
        key = image_key(self.paths[index], self.root)
        return draw_view(width, height, self.policy, seed=self.seed, key=key, pass_=pass_)

    def needed(self, positions: int) -> np.ndarray:
        """Which views the first `positions` of the order ask for: (passes, images) bool."""
        whole, rest = divmod(positions, len(self.paths))
        passes = whole + bool(rest)
        found = np.zeros((min(passes, self.views or passes), len(self.paths)), dtype=bool)
        found[:whole] = True
        if rest and whole < len(found):
            found[whole, self.order.span(whole * len(self.paths), rest)[0]] = True
        return found

    def boxes(
        self, asked: np.ndarray, indices: np.ndarray, sizes: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The views of many images, in portions: columns of `asked` (k,) and their views (k, 5), see draw_views.

        Args:
            asked: (passes, n) bool, which views are wanted, and in this order. indices: (n,) of the images. sizes:
                (n, 2), width and height in pixels.
        """
        keys = np.array([image_key(self.paths[index], self.root) for index in indices.tolist()], dtype=np.uint64)
        positions = np.flatnonzero(asked)
        for start in range(0, len(positions), PORTION):
            passes, at = np.divmod(positions[start : start + PORTION], len(indices))
            widths, heights = sizes[at].T
            yield at, draw_views(widths, heights, self.policy, seed=self.seed, keys=keys[at], passes=passes)

    def _read(self, position: int, skipped: set[int]) -> tuple[int, int, Picture]:
        """(index, pass, image) at a position or, where its file cannot be read, at the next one that can be."""
        while True:
            index, pass_ = self.order[position]
            try:
                return index, pass_, self.reader.open(self.paths[index])
            except UnreadableImage:
                if not self.allowed or len(self.paths) == 1:
                    raise
            skipped.add(index)
            self._check(skipped)
            position += 1

    def _check(self, skipped: set[int]) -> None:
        if len(skipped) > self.allowed:
            shown = ", ".join(printable(self.paths[index]) for index in sorted(skipped)[:5])
            raise UnreadableImage(
                f"{len(skipped)} of {len(self.paths):,} images cannot be read ({shown}), and INPUT.BAD_IMAGES skip "
                f"passes over {self.allowed} at most: replace the files or remove them from the split"
            )

    def receive(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch as the main process uses it, whichever worker made it: "skipped" taken out and counted, images cut.

        Raises:
            UnreadableImage: more files than BAD_IMAGES allows; a file that reader cuda finds broken only here.
        """
        for index in batch.pop("skipped", torch.tensor([])).tolist():
            if index not in self.unreadable:
                self.unreadable.add(index)
                print(f"Passed over, since it cannot be read: {printable(self.paths[index])}")
        self._check(self.unreadable)
        if any(self.sizes):
            self.reader.receive(batch, [self.paths[index] for index in batch["index"].tolist()])
        return batch


class StepBatches(Dataset):
    """Item k is the batch of global step k: labelled images, and under "unlabeled" as many unlabelled ones.

    Neither set is truncated: each runs through its own endless order, so the shorter one simply comes round more often.
    Of several processes each has its own equal part of that batch, see distributed.share.

    Raises:
        UsageError: the processes cannot take equal parts of a batch.
    """

    def __init__(
        self,
        labeled: ViewSource,
        labels: Sequence[int],
        batch_size: int,
        unlabeled: ViewSource | None,
        unlabeled_size: int,
    ) -> None:
        self.labeled, self.unlabeled = labeled, unlabeled
        self.labels = torch.tensor(labels)
        self.batch_size, self.unlabeled_size = batch_size, unlabeled_size
        # Here, since a loader's worker may know nothing of the other processes.
        self._part = share(batch_size, "DATALOADER.TRAIN_X.BATCH_SIZE")
        if unlabeled is not None:
            self._unlabeled_part = share(unlabeled_size, "DATALOADER.TRAIN_U.BATCH_SIZE")

    def __getitem__(self, step: int) -> dict[str, Any]:
        batch = _part_of(self.labeled, step * self.batch_size, self._part)
        batch["label"] = self.labels[batch["index"]]
        batch["domain"] = torch.zeros_like(batch["label"])
        if self.unlabeled is not None:
            batch["unlabeled"] = _part_of(self.unlabeled, step * self.unlabeled_size, self._unlabeled_part)
        return batch

    def reads_files(self) -> bool:
        """Whether a batch needs pixels."""
        return any(any(source.sizes) for source in (self.labeled, self.unlabeled) if source is not None)

    def receive(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See ViewSource.receive; of both sources."""
        self.labeled.receive(batch)
        if self.unlabeled is not None:
            self.unlabeled.receive(batch["unlabeled"])
        return batch

    def unreadable(self) -> list[str]:
        """The files that were passed over, sorted."""
        return sorted({source.paths[index] for source in self._sources() for index in source.unreadable})

    def passed_over(self) -> list[list[int]]:
        """Their indices, source by source."""
        return [sorted(source.unreadable) for source in self._sources()]

    def pass_over(self, indices: Sequence[Sequence[int]]) -> None:
        """Know of what passed_over() returned earlier."""
        for source, known in zip(self._sources(), indices, strict=True):
            source.unreadable.update(known)

    def paths(self, batch: Mapping[str, Any]) -> list[str]:
        """The files of the images of a batch, its labelled and then its unlabelled ones."""
        parts = [batch, *([batch["unlabeled"]] if "unlabeled" in batch else [])]
        chosen = zip(self._sources(), parts, strict=False)
        return [source.paths[index] for source, part in chosen for index in part["index"].tolist()]

    def _sources(self) -> list[ViewSource]:
        return [self.labeled, *([self.unlabeled] if self.unlabeled is not None else [])]


def cut(batch: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    """A batch in equal parts, each with its share of the labelled and of the unlabelled images."""
    if parts == 1:
        return [dict(batch)]
    pieces: list[dict[str, Any]] = [{} for _ in range(parts)]
    for key, value in batch.items():
        shares: Sequence[Any] = cut(value, parts) if isinstance(value, Mapping) else value.chunk(parts)
        for piece, part in zip(pieces, shares, strict=True):
            piece[key] = part
    return pieces


def _part_of(source: ViewSource, start: int, part: slice) -> dict[str, Any]:
    return source.batch(start + part.start, part.stop - part.start)


class EpochLoader:
    """The training loader that Dassl's loop iterates: `steps` batches an epoch, those of global steps e*steps onward.

    Args:
        batches: StepBatches. steps: steps in an epoch. workers: loader processes. pin_memory: for CUDA.
    """

    def __init__(self, batches: StepBatches, *, steps: int, workers: int, pin_memory: bool) -> None:
        self.batches, self.steps, self.workers, self.pin_memory = batches, steps, workers, pin_memory
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch that the next iteration yields, and the number of its first batch there."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        steps = range(self.epoch * self.steps + self.first, (self.epoch + 1) * self.steps)
        workers = self.workers if steps and self.batches.reads_files() else 0  # a process would cost more than it does
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            pin_memory=self.pin_memory,
            worker_init_fn=deaf,
            generator=torch.Generator(),  # of its own, so that whatever is random in a model does not depend on it
        )
        return map(self.batches.receive, loader)


class TestImages(Dataset):
    """Centre views of a list of Dassl items, in the keys that Dassl's evaluation expects."""

    __test__ = False  # not a test case, whatever its name starts with

    def __init__(self, items: Sequence[Datum], *, size: int, interpolation: InterpolationMode) -> None:
        self.items, self.size, self.interpolation = items, size, interpolation

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        view: Tensor = center_view(read_image(item.impath), self.size, self.interpolation)
        return {"img": view, "label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
