"""Where data sets lie whose folders are called otherwise than in CoOp's layout, or nested once more: a table.

The usual place always wins where it has images. Elsewhere a folder is taken if it is the only one; nothing is guessed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError
from ..predicting import printable


class Near(NamedTuple):
    """What a set's folders are called elsewhere.

    Attributes:
        marker: a pattern below an image folder; one that has no such file is not the set's.
        folders: other names of the set's own folder. images: other places of the images below it ("" for itself).
        inner: names that an archive gives to one more folder between them, beside those of the set's own folder.
    """

    marker: str
    folders: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()


# By the set's own folder in CoOp's layout.
NEAR = {
    "caltech-101": Near("*/*.jpg", ("caltech101", "Caltech101", "caltech_101", "Caltech-101")),
    "oxford_pets": Near("*.jpg", ("oxford-pets", "OxfordPets", "oxford-iiit-pet", "oxford_iiit_pet")),
    "stanford_cars": Near("cars_*/*.jpg", ("stanford-cars", "StanfordCars", "stanfordcars")),
    "oxford_flowers": Near("*.jpg", ("oxford-flowers", "OxfordFlowers", "flowers-102", "flowers102", "102flowers")),
    "food-101": Near("*/*.jpg", ("food101", "Food101", "food_101", "Food-101")),
    "fgvc_aircraft": Near(
        "*.jpg", ("fgvc-aircraft", "FGVCAircraft", "fgvc-aircraft-2013b"), inner=("data", "fgvc-aircraft-2013b/data")
    ),
    "sun397": Near("[a-z]/*/*", ("SUN397",), ("",)),
    "dtd": Near("*/*.jpg", ("DTD", "dtd-r1.0.1")),
    "eurosat": Near("*/*.jpg", ("EuroSAT", "EuroSAT_RGB"), ("EuroSAT_RGB",)),
    "ucf101": Near("*/*.jpg", ("UCF101", "UCF-101", "ucf-101")),
    "imagenet": Near(
        "train/n????????/*",
        ("ImageNet", "imagenet-1k", "imagenet1k", "ILSVRC2012", "ILSVRC"),
        ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"),
    ),
    "imagenetv2": Near(
        "[0-9]*/*", ("ImageNetV2", "imagenet-v2", "imagenet_v2", "imagenetv2-matched-frequency-format-val"), ("",)
    ),
    "imagenet-sketch": Near("n????????/*", ("ImageNet-Sketch", "imagenet_sketch", "sketch"), ("sketch", "")),
    "imagenet-adversarial": Near("n????????/*", ("imagenet-a", "ImageNet-A", "imagenet_a"), ("",)),
    "imagenet-rendition": Near("n????????/*", ("imagenet-r", "ImageNet-R", "imagenet_r"), ("",)),
}


class Place(NamedTuple):
    """Where a set lies. base: its own folder; its images and (`lists`) the file that lists or names its classes.

    usual: where CoOp's layout has the images. found: whether `images` has any.
    """

    base: Path
    images: Path
    lists: Path
    usual: Path
    found: bool

    @property
    def below(self) -> str:
        """The image folder, seen from `base`."""
        return self.images.relative_to(self.base).as_posix()

    def note(self) -> str:
        """One line on a place that is not the usual one; "" for the usual one."""
        if self.images == self.usual:
            return ""
        return printable(f"{self.usual} has no images: taken from {self.images}")


def find(root: Path, folder: str, images: str, lists: str) -> Place:
    """Find a set's image folder and list.

    Args:
        root: DATASET.ROOT, absolute. folder: the set's own, in CoOp's layout. images: the image folder below that.
        lists: the name of its list: a split file, classnames.txt.

    Raises:
        UsageError: the usual place has no images, and several others have.
    """
    near = NEAR.get(folder)
    usual = Place(root / folder, root / folder / images, root / folder, root / folder / images, True)
    if near is None or _matches(usual.images, near.marker):
        return usual
    others: dict[tuple[int, int], tuple[Path, Path]] = {}
    for base, place in _candidates(root, folder, images, lists, near):
        if _matches(place, near.marker):
            others.setdefault(_identity(place), (base, place))
    if not others:
        return usual._replace(found=False)
    if len(others) > 1:
        places = " and ".join(printable(str(place)) for _, place in others.values())
        raise UsageError(
            f"{printable(str(usual.images))} has no images, and {len(others)} other folders have: {places}. Move or "
            "link the right one there"
        )
    base, place = next(iter(others.values()))
    holders = [base, base.parent] if root in base.parents and base.parent != root else [base]
    holder = next((where for where in (usual.base, *holders) if (where / lists).is_file()), base)
    return Place(base, place, holder, usual.images, True)


def _candidates(root: Path, folder: str, images: str, lists: str, near: Near) -> Iterator[tuple[Path, Path]]:
    """(own folder, image folder): the root itself where it seems to be the set's; a folder below it; nested once."""
    names = (folder, *near.folders)
    # classnames.txt is not the name of one set's list alone.
    too_deep = root.name in names or ("classnames" not in lists and (root / lists).is_file())
    bases = [root] if too_deep else []
    bases += [root / name for name in names]
    bases += [root / name / inner for name in names for inner in (*names, *near.inner)]
    for base in bases:
        for below in (images, *near.images):
            yield base, base / below


def _matches(folder: Path, marker: str) -> bool:
    try:
        return next(folder.glob(marker), None) is not None
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()  # one folder may have several spellings
    return status.st_dev, status.st_ino


def elsewhere(root: Path, name: str, *, most: int = 2000) -> list[Path]:
    """Files of a name in the root or up to three folders below; folders of more than `most` entries are passed by."""
    found, level = [], [root]
    for _ in range(4):
        deeper: list[Path] = []
        for folder in level:
            if (folder / name).is_file():
                found.append(folder / name)
            deeper += _folders(folder, most)
        level = deeper
    return found


def _folders(folder: Path, most: int) -> Sequence[Path]:
    found = []
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number >= most:
                    return []
                if entry.is_dir() and not entry.name.startswith("."):
                    found.append(Path(entry.path))
    except OSError:
        return []
    return sorted(found)
