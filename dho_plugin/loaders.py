"""From a Dassl dataset to batches: the training batch of global step k is a pure function of (seed, k)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode

from .host import Datum
from .views import Order, ViewPolicy, center_view, draw_view, image_key, read_image, render


class Sizes(NamedTuple):
    """Resolutions in pixels of the student's and of the teacher's view; no teacher view is made for None."""

    student: int
    teacher: int | None = None


class ViewSource:
    """A set of images in an endless order, cut into views: one decode for each image, whatever the number of sizes.

    Args:
        paths: image files. root: dataset root, from which images get their identity. sizes, policy, interpolation:
            what to cut. seed: the run's seed. stream: 0 for labelled, 1 for unlabelled images.
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
    ) -> None:
        self.paths = list(paths)
        self.root, self.sizes, self.policy, self.interpolation, self.seed = root, sizes, policy, interpolation, seed
        self.order = Order(len(self.paths), seed=seed, stream=stream)

    def batch(self, start: int, count: int) -> dict[str, Any]:
        """Views at `count` positions of the endless order.

        Returns:
            "img": uint8 (count, 3, s, s); "img_teacher": uint8 (count, 3, t, t) if asked for; "index": (count,).
        """
        student, teacher, indices = [], [], []
        for position in range(start, start + count):
            index, pass_ = self.order[position]
            image = read_image(self.paths[index])
            key = image_key(self.paths[index], self.root)
            view = draw_view(*image.size, self.policy, seed=self.seed, key=key, pass_=pass_)
            student.append(render(image, view, self.sizes.student, self.interpolation))
            if self.sizes.teacher is not None:
                same = self.sizes.teacher == self.sizes.student
                teacher.append(student[-1] if same else render(image, view, self.sizes.teacher, self.interpolation))
            indices.append(index)
        batch = {"img": torch.stack(student), "index": torch.tensor(indices)}
        if teacher:
            batch["img_teacher"] = torch.stack(teacher)
        return batch


class StepBatches(Dataset):
    """Item k is the whole batch of global step k: labelled images, and under "unlabeled" as many unlabelled ones.

    Neither set is truncated: each runs through its own endless order, so the shorter one simply comes round more often.
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

    def __getitem__(self, step: int) -> dict[str, Any]:
        batch = self.labeled.batch(step * self.batch_size, self.batch_size)
        batch["label"] = self.labels[batch["index"]]
        batch["domain"] = torch.zeros_like(batch["label"])
        if self.unlabeled is not None:
            batch["unlabeled"] = self.unlabeled.batch(step * self.unlabeled_size, self.unlabeled_size)
        return batch


class EpochLoader:
    """The training loader that Dassl's loop iterates: `steps` batches an epoch, those of global steps e*steps onward.

    Args:
        batches: StepBatches. steps: steps in an epoch. workers: loader processes. pin_memory: for CUDA.
    """

    def __init__(self, batches: StepBatches, *, steps: int, workers: int, pin_memory: bool) -> None:
        self.batches, self.steps, self.workers, self.pin_memory = batches, steps, workers, pin_memory
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        steps = range(self.epoch * self.steps, (self.epoch + 1) * self.steps)
        loader = DataLoader(
            self.batches, batch_size=None, sampler=steps, num_workers=self.workers, pin_memory=self.pin_memory
        )
        return iter(loader)


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
