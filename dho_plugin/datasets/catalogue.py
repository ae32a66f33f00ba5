"""CoOp's ten further datasets, in its folder layouts and with its split files: a table, and one reader for all.

A split file is {"train" | "val" | "test": [[path below the image folder, label, class name], ...]}. FGVC-Aircraft has
none; the archive's own lists serve. Where a split file is missing CoOp draws a new split, with which no published
number compares; here that is an error.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..errors import UsageError
from ..host import DatasetBase, Datum
from ..predicting import printable
from ..registration import register_dataset
from .imagenet import class_range, keep_classes, list_folder
from .layouts import Place, elsewhere, find
from .lists import read_lines
from .split_cache import few_shot

HOW_TO_GET = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
SPLITS = ("train", "val", "test")


class Row(NamedTuple):
    """One image of a split: its path below the image folder, its label and its class's name."""

    path: str
    label: int
    name: str


class Description(NamedTuple):
    """What tells one of the datasets from another.

    Attributes:
        name: as registered, and in the name of the split file. folder: below DATASET.ROOT.
        images: the image folder below that, which a split file's paths start from ("" for the dataset's folder).
        drive: the split file's id on Google Drive; "" where the lists of FGVC-Aircraft's archive take its place.
        classes, train, val, test: the numbers of the DHO paper's Table 10.
    """

    name: str
    folder: str
    images: str
    drive: str
    classes: int
    train: int
    val: int
    test: int

    @property
    def lists(self) -> str:
        """The file that lists the images: its split file, or FGVC-Aircraft's classes, beside which its lists lie."""
        return f"split_zhou_{self.name}.json" if self.drive else "variants.txt"


CATALOGUE = (
    Description(
        "Caltech101", "caltech-101", "101_ObjectCategories", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN", 100, 4128, 1649, 2465
    ),
    Description("OxfordPets", "oxford_pets", "images", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", 37, 2944, 736, 3669),
    Description("StanfordCars", "stanford_cars", "", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT", 196, 6509, 1635, 8041),
    Description("OxfordFlowers", "oxford_flowers", "jpg", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", 102, 4093, 1633, 2463),
    Description("Food101", "food-101", "images", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", 101, 50500, 20200, 30300),
    Description("FGVCAircraft", "fgvc_aircraft", "images", "", 100, 3334, 3333, 3333),
    Description("SUN397", "sun397", "SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq", 397, 15880, 3970, 19850),
    Description("DescribableTextures", "dtd", "images", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x", 47, 2820, 1128, 1692),
    Description("EuroSAT", "eurosat", "2750", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", 10, 13500, 5400, 8100),
    Description("UCF101", "ucf101", "UCF-101-midframes", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", 101, 7639, 1898, 3783),
)
# The same, by the names of their files in configs/datasets.
TEN = (
    *("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)
# Classes, training, validation and test images as in the paper's Table 10 (which rounds ImageNet's training images).
PUBLISHED = {described.name: described[-4:] for described in CATALOGUE} | {
    "ImageNet": (1000, 1_281_167, 0, 50_000),
    "ImageNetV2": (1000, 0, 0, 10_000),
    "ImageNetSketch": (1000, 0, 0, 50_889),
    "ImageNetA": (200, 0, 0, 7_500),
    "ImageNetR": (200, 0, 0, 30_000),
}


class SplitByFile(DatasetBase):
    """The reader: a split file, K images a class of train and min(K, 4) of val, the base or the new classes.

    A class is known by its name; no two of a dataset share one.
    """

    described: ClassVar[Description]

    def __init__(self, cfg: Any) -> None:
        root = Path(cfg.DATASET.ROOT).expanduser().absolute()
        place = self.place(root)
        folder, images = place.base, place.images
        self.dataset_dir = str(folder)
        list_folder(folder)  # where it is missing, that is the message wanted
        file, rows = self.rows(root, place)
        classes = number_of_classes(rows, file)
        counts = (classes, *(len(rows[split]) for split in SPLITS))
        if cfg.VERBOSE and place.note():
            print(place.note())
        if cfg.VERBOSE and counts != self.described[-4:]:
            print(
                f"{folder}: {counts} classes, training, validation and test images, published are "
                f"{self.described[-4:]}: results do not compare"
            )
        sets = {split: [_datum(images, row, file) for row in rows[split]] for split in SPLITS}
        sets |= few_shot(self, cfg, {"train": sets["train"], "val": sets["val"]})
        labels = class_range(classes, cfg.DATASET.SUBSAMPLE_CLASSES)
        kept = {split: keep_classes(items, labels, classes) for split, items in sets.items()}
        super().__init__(train_x=kept["train"], val=kept["val"], test=kept["test"])

    @classmethod
    def place(cls, root: Path) -> Place:
        """Where it lies below a DATASET.ROOT; see layouts.find."""
        return find(root, cls.described.folder, cls.described.images, cls.described.lists)

    @classmethod
    def rows(cls, root: Path, place: Place) -> tuple[Path, dict[str, list[Row]]]:
        """The file that lists the images, and what it says.

        Raises:
            UsageError: as read_split and read_variants; where the file lies in another place, with the way to move it.
        """
        file = place.lists / cls.described.lists
        others = [] if file.is_file() else elsewhere(root, file.name)
        if others:
            raise UsageError(
                f"{file.name} is looked for at {printable(str(file))}, and lies at "
                f"{printable(' and '.join(map(str, others)))}: mv {_quoted(others[0])} {_quoted(file)}"
            )
        return read_split(place.lists, cls.described) if cls.described.drive else read_variants(place.lists)


def _quoted(path: Path) -> str:
    return shlex.quote(printable(str(path)))


def read_split(folder: Path, described: Description) -> tuple[Path, dict[str, list[Row]]]:
    """A split file and what it says.

    Raises:
        UsageError: it is missing (the message says how to get it), is not JSON, or has an entry of another form.
    """
    path = folder / described.lists
    if not path.is_file():
        raise UsageError(
            f"no split file at {path}. Get CoOp's with: gdown {described.drive} -O {path} (see {HOW_TO_GET})"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return path, {split: [_row(entry) for entry in content[split]] for split in SPLITS}
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path} is not a split file ({type(error).__name__}: {error}): expected "
            '{"train": [[path, label, class name], ...], "val": ..., "test": ...}'
        ) from error


def _row(entry: Sequence[Any]) -> Row:
    path, label, name = entry
    return Row(str(path), int(label), str(name))


def read_variants(folder: Path) -> tuple[Path, dict[str, list[Row]]]:
    """FGVC-Aircraft's lists: variants.txt has the classes in label order, images_variant_*.txt "<image> <class>" lines.

    Raises:
        UsageError: a list is missing (the message says how to get it), or has a class that variants.txt lacks.
    """
    variants = folder / "variants.txt"
    labels = {name: label for label, name in enumerate(_lines(variants))}
    rows: dict[str, list[Row]] = {}
    for split in SPLITS:
        path = folder / f"images_variant_{split}.txt"
        rows[split] = []
        for number, line in enumerate(_lines(path), start=1):
            image, _, name = line.partition(" ")
            if name not in labels:
                raise UsageError(f"{path}, line {number}: expected '<image> <class of {variants.name}>', got {line!r}")
            rows[split].append(Row(f"{image}.jpg", labels[name], name))
    return variants, rows


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(f"no list at {path}: it is in data/ of fgvc-aircraft-2013b.tar.gz (see {HOW_TO_GET})")
    return [line.strip() for line in read_lines(path)]


def number_of_classes(rows: dict[str, list[Row]], file: Path) -> int:
    """The number C of classes.

    Raises:
        UsageError: the training images' labels are not 0 to C - 1, or names and labels do not go one to one.
    """
    pairs = {(row.label, row.name) for split in rows.values() for row in split}
    labels, names = {label for label, _ in pairs}, {name for _, name in pairs}
    if not len(pairs) == len(labels) == len(names):
        raise UsageError(f"{file}: {len(labels)} labels and {len(names)} class names do not go one to one")
    missing = set(range(len(labels))) - {row.label for row in rows["train"]}
    if missing:
        raise UsageError(f"{file}: no training image has label {min(missing)}; expected all of 0 to {len(labels) - 1}")
    return len(labels)


def _datum(images: Path, row: Row, file: Path) -> Datum:
    path = images / row.path
    try:
        return Datum(impath=str(path), label=row.label, classname=row.name)
    except (FileNotFoundError, AssertionError) as error:  # the latter is Dassl's
        there = list_folder(path.parent)
        raise UsageError(
            f"{file} has the image {path}, which is missing: its folder holds {len(there)} others. "
            f"Unpack the images again (see {HOW_TO_GET})"
        ) from error


# By registered name; in a host that has a class of that name, the registry keeps the host's.
CLASSES = {
    described.name: register_dataset(
        type(described.name, (SplitByFile,), {"described": described, "__module__": __name__})
    )
    for described in CATALOGUE
}
