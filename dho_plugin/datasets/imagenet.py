"""ImageNet and its four variants in CoOp's folder layout.

Each is a root folder with `classnames.txt` ("<wnid> <name>" a line) and class folders; layouts.py has the places that
will do too. Listings are sorted, so that a K-shot split is the same on every machine (CoOp takes the order in which the
file system lists).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UsageError
from ..host import DatasetBase, Datum
from ..predicting import printable
from ..registration import register_dataset
from .layouts import NEAR, Place, find
from .lists import read_lines
from .split_cache import few_shot

CLASSNAMES = "classnames.txt"
# The validation archive has no class folders; this is the usual script that makes them.
SORT_VAL = "https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh"


def read_classnames(path: Path) -> dict[str, str]:
    """Class names by folder id, in file order.

    Raises:
        UsageError: no such file, a line without a name, or one that is not UTF-8; it gives the line number.
    """
    if not path.is_file():
        list_folder(path.parent)  # where the folder itself is missing, that is the message wanted
        raise UsageError(f"no class names at {path}: expected CoOp's classnames.txt, one '<wnid> <name>' a line")
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        id_, _, name = line.strip().partition(" ")
        if not name:
            raise UsageError(f"{path}, line {number}: expected '<wnid> <name>', got {line!r}")
        names[id_] = name.strip()
    return names


def class_names(root: Path, place: Place) -> tuple[dict[str, str], str]:
    """Class names by id, and a line on where they come from if that is not the set's own classnames.txt.

    ImageNet's file serves its variants. Where there is none, the names are those of the installed packages.

    Args:
        root: DATASET.ROOT. place: the set's.

    Raises:
        UsageError: as read_classnames; a set that is none of ImageNet's has no such file.
    """
    own = place.lists / CLASSNAMES
    around = (root, root.parent) if place.base == root else (root,)
    files = [own, *(where / ImageNet.folder / CLASSNAMES for where in around)]
    if own.is_file() or place.usual.relative_to(root).parts[0] not in NEAR:
        return read_classnames(own), ""
    file = next((file for file in files if file.is_file()), None)
    if file:
        return read_classnames(file), printable(f"no {own}: class names from {file}")
    return packaged_names(), printable(
        f"no {own}: class names from the packages open_clip and timm. CoOp's file may word some otherwise, which moves "
        "accuracies by tenths"
    )


def packaged_names() -> dict[str, str]:
    """OpenAI's names of ImageNet's 1000 classes by WordNet id, in label order, from the installed packages."""
    from timm.data import ImageNetInfo

    from ..vlm import imagenet_classnames  # the models' libraries, which a dataset needs for nothing else

    return dict(zip(ImageNetInfo().label_names(), imagenet_classnames(), strict=True))


def check_class_folders(folder: Path) -> None:
    """Refuse a folder of images without class folders, as ImageNet's validation archive unpacks."""
    entries = list_folder(folder)
    if entries and not any(entry.is_dir() for entry in entries):
        raise UsageError(
            f"{folder} holds {len(entries):,} files and no class folders, as the validation archive does: sort them by "
            f"class with {SORT_VAL}, run in that folder"
        )


def list_folder(path: Path) -> list[Path]:
    """Sorted visible entries of a folder.

    Raises:
        UsageError: there is no such folder; it says what stands in the nearest folder above that exists.
    """
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    above = next(parent for parent in path.parents if parent.is_dir())
    there = sorted(entry.name for entry in above.iterdir())
    raise UsageError(
        f"missing folder {path}: {above} holds {there[:10] or 'nothing'}. "
        "Check --root, which is the folder above the dataset's own (see CoOp's DATASETS.md for the layouts)"
    )


def image_files(folder: Path) -> list[str]:
    """Paths of a class folder's visible files in the order of their names; its listing alone is read.

    Raises:
        UsageError: something in it is no file.
    """
    with os.scandir(folder) as entries:
        files = {entry.name: entry.is_file() for entry in entries if not entry.name.startswith(".")}
    strange = [name for name, is_file in files.items() if not is_file]
    if strange:
        raise UsageError(f"{folder} holds {strange[0]!r}, which is no file: expected images and nothing else")
    return [os.path.join(folder, name) for name in sorted(files)]


def listed_item(path: str, label: int, classname: str) -> Datum:
    """An item for a file that a listing has just named: Datum's own look at every file costs ImageNet minutes on a
    network drive."""
    item = Datum.__new__(Datum)
    item._impath, item._label, item._domain, item._classname = path, label, 0, classname
    return item


def class_range(num_classes: int, subsample: str) -> range:
    """CoOp's base-to-new split of the labels: "base" is the first half (rounded up), "new" the rest, "all" both."""
    if subsample not in ("all", "base", "new"):
        raise UsageError(f"DATASET.SUBSAMPLE_CLASSES must be all, base or new, got {subsample!r}")
    half = math.ceil(num_classes / 2)
    return {"all": range(num_classes), "base": range(half), "new": range(half, num_classes)}[subsample]


def keep_classes(items: list[Datum], labels: range, num_classes: int) -> list[Datum]:
    """The items of the given labels, labelled from 0."""
    if len(labels) == num_classes:
        return items
    return [
        Datum(impath=item.impath, label=item.label - labels.start, domain=item.domain, classname=item.classname)
        for item in items
        if item.label in labels
    ]


class ClassFolders(DatasetBase):
    """Class folders named by id: the reader behind every dataset of this file.

    Attributes:
        folder: the dataset's folder below DATASET.ROOT. images: folder(s) of class folders below that.
        numbered: class folders are label numbers instead of ids (ImageNet-V2).
    """

    folder: ClassVar[str]
    images: str = "images"
    numbered: ClassVar[bool] = False

    def __init__(self, cfg: Any) -> None:
        root = Path(cfg.DATASET.ROOT).expanduser().absolute()
        place = self.place(root)
        list_folder(place.images)  # where it is missing, that is the message wanted
        self.dataset_dir, self.images = str(place.base), place.below
        self.names, source = class_names(root, place)
        if cfg.VERBOSE or not isinstance(self, TrainableFolders):  # a shifted test set is always built quietly, once
            for line in filter(None, (place.note(), source)):
                print(line)
        super().__init__(**self.splits(cfg))

    @classmethod
    def place(cls, root: Path) -> Place:
        """Where it lies below a DATASET.ROOT; see layouts.find."""
        return find(root, cls.folder, cls.images, CLASSNAMES)

    def splits(self, cfg: Any) -> dict[str, list[Datum]]:
        """The sets that DatasetBase takes; Dassl wants a train_x even of a set that is for testing only."""
        test = self.read(self.images)
        return {"train_x": test, "test": test}

    def read(self, images: str) -> list[Datum]:
        """All images below <dataset>/<images>/<class folder>/, labelled by the sorted order of the folders."""
        folders = [entry for entry in list_folder(Path(self.dataset_dir) / images) if entry.is_dir()]
        ordered = list(self.names)
        if self.numbered:
            folders.sort(key=lambda entry: int(entry.name))
            ids = [ordered[int(entry.name)] for entry in folders]
        else:
            ids = [entry.name for entry in folders]
        unknown = [id_ for id_ in ids if id_ not in self.names]
        if unknown:
            raise UsageError(
                f"{len(unknown)} class folders of {self.dataset_dir} have no class name, first {unknown[0]!r}"
            )
        if not folders:
            raise UsageError(f"no class folders in {Path(self.dataset_dir) / images}")
        self.class_ids = ids
        return [
            listed_item(path, label, self.names[id_])
            for label, (id_, entry) in enumerate(zip(ids, folders, strict=True))
            for path in image_files(entry)
        ]


class TrainableFolders(ClassFolders):
    """Class folders with a training set of which K images a class are labelled.

    Attributes:
        train_folder, val_folder, test_folder: subfolders of `images`.
    """

    train_folder: ClassVar[str] = "train"
    val_folder: ClassVar[str] = "val"
    test_folder: ClassVar[str] = "val"

    def splits(self, cfg: Any) -> dict[str, list[Datum]]:
        check_class_folders(Path(self.dataset_dir) / self.images / self.test_folder)
        test = self.read(f"{self.images}/{self.test_folder}")
        ids = self.class_ids
        val = test if self.val_folder == self.test_folder else self.read(f"{self.images}/{self.val_folder}")
        train = self.read(f"{self.images}/{self.train_folder}")
        if ids != self.class_ids:
            odd = sorted(set(ids).symmetric_difference(self.class_ids))
            raise UsageError(
                f"{self.dataset_dir}: train and test folders differ in {len(odd)} classes, first {odd[0]!r}"
            )
        # Drawn at the same point as in CoOp's dataset, from the same state.
        labeled = few_shot(self, cfg, {"train": train})["train"]
        labels = class_range(len(ids), cfg.DATASET.SUBSAMPLE_CLASSES)
        self.class_ids = ids[labels.start : labels.stop]
        sets = {"train_x": labeled, "val": val, "test": test}
        return {name: keep_classes(items, labels, len(ids)) for name, items in sets.items()}


@register_dataset
class ImageNet(TrainableFolders):
    """ImageNet; as is usual, its validation images are the test set (and are returned as `val` too, as CoOp does)."""

    folder = "imagenet"


@register_dataset
class ImageNetV2(ClassFolders):
    """ImageNet-V2, matched frequency: folders 0 to 999 in the order of classnames.txt."""

    folder = "imagenetv2"
    images = "imagenetv2-matched-frequency-format-val"
    numbered = True


@register_dataset
class ImageNetSketch(ClassFolders):
    """ImageNet-Sketch, all 1000 classes."""

    folder = "imagenet-sketch"


@register_dataset
class ImageNetA(ClassFolders):
    """ImageNet-A(dversarial), 200 classes."""

    folder = "imagenet-adversarial"
    images = "imagenet-a"


@register_dataset
class ImageNetR(ClassFolders):
    """ImageNet-R(endition), 200 classes."""

    folder = "imagenet-rendition"
    images = "imagenet-r"
