"""The rows of `python -m dho_plugin benchmark` on images: one decode for all views, against the peers' transforms.

The peers' way is written out here with torchvision's transforms on Pillow images: their loader draws, decodes, cuts and
normalises in float; the boxes are then replaced by ours, so that the views can be compared. Ours is a loader's batch in
8 bits, which the model normalises on its device: that is done for the comparison and not timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from ..loaders import Sizes, ViewSource
from ..pack import Job, pack_file
from ..store import view_records
from ..views import View, ViewPolicy, read_image, render
from .row import TOLERANCE, Row

STUDENT, TEACHER = 224, 336
SIZE, LARGE = (500, 375), (1600, 1200)  # ImageNet's usual size, in files of about 80 KB; a photograph's
HOW = InterpolationMode.BICUBIC
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
# Relative differences that are the rounding of pixels, and that are another recipe: the authors' student sees the
# teacher's view resized, a pack's run the shrunk image.
ROUNDING, RECIPE = 0.01, 0.1


def photograph(number: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colours with as much noise as lets a JPEG of quality 90 take about 3.4 bits a pixel."""
    rng = np.random.default_rng(number)
    smooth = Image.fromarray(rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, 13, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


class Files:
    """JPEG files in a folder, written when they are first asked for.

    Args:
        folder: where. size: of the images in pixels. count: how many.
    """

    def __init__(self, folder: Path, size: tuple[int, int], count: int) -> None:
        self.folder, self.size, self.count = folder, size, count

    @cached_property
    def paths(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [str(self.folder / f"{number}.jpg") for number in range(self.count)]
        for number, path in enumerate(paths):
            photograph(number, self.size).save(path, quality=90)
        return paths

    @cached_property
    def packed(self) -> list[str]:
        """Their copies with a shorter side of 480 pixels (pack.py)."""
        jobs = [Job(path, str(self.folder / "packed" / Path(path).name), 480, 92) for path in self.paths]
        for job in jobs:
            pack_file(job)
        return [job.target for job in jobs]

    def source(self, paths: list[str], teacher: int | None, reader: str) -> ViewSource:
        """Views of these files as a run draws them."""
        return ViewSource(
            paths,
            root=str(Path(paths[0]).parent),
            sizes=Sizes(STUDENT, teacher),
            policy=ViewPolicy(),
            interpolation=HOW,
            seed=1,
            stream=0,
            reader=reader,
        )

    @cached_property
    def views(self) -> list[tuple[str, View]]:
        """The files and their boxes in the order of the first batch."""
        source = self.source(self.paths, None, "pil")
        order = [source.order[position][0] for position in range(self.count)]
        return [(self.paths[index], source.view(index, 0, *self.size)) for index in order]


def read(path: str) -> Image.Image:
    """As CoOp, Dassl and torchvision's ImageFolder do."""
    return Image.open(path).convert("RGB")


def cut(image: Image.Image, view: View, size: int) -> Image.Image:
    """RandomResizedCrop and RandomHorizontalFlip; what they draw is not used."""
    RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3])
    torch.rand(1)
    small = TF.resized_crop(image, view.top, view.left, view.height, view.width, [size, size], HOW)
    return TF.hflip(small) if view.flip else small


def normalised(image: Image.Image) -> Tensor:
    """ToTensor and Normalize."""
    return TF.normalize(TF.to_tensor(image), MEAN, STD)


def two_decodes(files: Files, sizes: tuple[int, ...]) -> list[Tensor]:
    """A view at each resolution from a loader of its own, as where teacher and student are two datasets."""
    return [torch.stack([normalised(cut(read(path), view, size)) for path, view in files.views]) for size in sizes]


def authors(files: Files) -> list[Tensor]:
    """DHO's authors: a view for the teacher, from which the student's is resized. The student's is returned."""
    student = []
    for path, view in files.views:
        large = cut(read(path), view, TEACHER)
        normalised(large)
        student.append(normalised(TF.resize(large, [STUDENT, STUDENT], HOW)))
    return [torch.stack(student)]


def ours(files: Files, teacher: int | None, reader: str, *, packed: bool = False) -> list[Tensor]:
    """A batch as a run's loader makes it, uint8."""
    source = files.source(files.packed if packed else files.paths, teacher, reader)
    batch = source.receive(source.batch(0, files.count))
    return [batch[key] for key in ("img", "img_teacher") if key in batch]


def on_device(images: Tensor) -> Tensor:
    """uint8 (N, 3, s, s) -> normalised float."""
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    return (images.float() - mean) / std


def rows(folder: Path, count: int = 16) -> Iterator[Row]:
    """The cases of the table; their files are written to a folder when a case is run.

    Args:
        count: of images of the usual size; a fourth of it are large.
    """
    files, large = Files(folder / "usual", SIZE, count), Files(folder / "large", LARGE, max(1, count // 4))
    for reader in ("pil", "tensor"):
        rounding = TOLERANCE if reader == "pil" else ROUNDING
        yield Row(
            f"input, {STUDENT} and {TEACHER} pixels: two decodes against one, reader {reader}",
            partial(two_decodes, files, (STUDENT, TEACHER)),
            partial(ours, files, TEACHER, reader),
            1.7,
            rounding,
            on_device,
        )
        yield Row(
            f"input, teacher stored: the authors' pipeline against the student's view alone, reader {reader}",
            partial(authors, files),
            partial(ours, files, None, reader),
            2.2,
            RECIPE,
            on_device,
        )
    for reader in ("pil", "tensor"):
        yield Row(
            f"input, teacher stored: photographs of {LARGE[0]} x {LARGE[1]} against their pack, reader {reader}",
            partial(ours, large, None, reader),
            partial(ours, large, None, reader, packed=True),
            None,
            RECIPE,
        )


def replayed(folder: Path, count: int = 16, passes: int = 4) -> tuple[int, int]:
    """Of views that were drawn, how many come out the same to the pixel from what a store knows of them; and all."""
    files = Files(folder / "usual", SIZE, count)
    source, same = files.source(files.paths, None, "pil"), 0
    every = np.arange(count)  # instead of hashes of the files
    boxes = [part for _, part in source.boxes(np.ones((passes, count), dtype=bool), every, np.tile(SIZE, (count, 1)))]
    names = view_records(np.tile(every, passes), np.concatenate(boxes)).reshape(passes, count)
    for pass_ in range(passes):
        batch = source.batch(pass_ * count, count)
        for view, index in zip(batch["img"], batch["index"].tolist(), strict=True):
            content, left, top, width, height, flip = names[pass_, index].tolist()
            box = View(left, top, width, height, bool(flip))
            again = render(read_image(files.paths[content]), box, STUDENT, HOW)
            same += torch.equal(again, view)
    return same, passes * count
