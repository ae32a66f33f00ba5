"""Miniatures of CoOp's ten datasets, each in its true layout, and split caches as CoOp pickles them."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiny

COUNTS = {"train": 6, "val": 5, "test": 2}  # images of a class


class Layout(NamedTuple):
    """How a dataset's files are called. images: the pattern of a path below `folder`/`below`; {n} counts in a class.

    classes: (folder of the class, its name), in label order.
    """

    folder: str
    below: str
    images: str
    classes: tuple[tuple[str, str], ...]


def same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


LAYOUTS = {
    "Caltech101": Layout(
        "caltech-101",
        "101_ObjectCategories",
        "{label}/image_{n:04d}.jpg",
        (("Faces", "face"), ("Leopards", "leopard"), ("accordion", "accordion"), ("airplanes", "airplane")),
    ),
    "OxfordPets": Layout(
        "oxford_pets",
        "images",
        "{label}_{n}.jpg",
        (("Abyssinian", "abyssinian"), ("american_bulldog", "american_bulldog"), ("Birman", "birman")),
    ),
    "StanfordCars": Layout(
        "stanford_cars",
        "",
        "cars_{half}/{id:05d}.jpg",
        same("2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Audi TTS Coupe", "2012 smart fortwo"),
    ),
    "OxfordFlowers": Layout("oxford_flowers", "jpg", "image_{id:05d}.jpg", same("pink primrose", "canna lily", "iris")),
    "Food101": Layout("food-101", "images", "{label}/{id}.jpg", same("apple_pie", "baby_back_ribs", "waffles")),
    "FGVCAircraft": Layout("fgvc_aircraft", "images", "{id:07d}.jpg", same("707-320", "727-200", "A300B4", "DC-10")),
    "SUN397": Layout(
        "sun397",
        "SUN397",
        "{label}/sun_{id:05d}.jpg",
        (("a/abbey", "abbey"), ("a/apse/indoor", "indoor apse"), ("c/church/outdoor", "outdoor church")),
    ),
    "DescribableTextures": Layout(
        "dtd", "images", "{label}/{label}_{n:04d}.jpg", same("banded", "polka-dotted", "zigzagged")
    ),
    "EuroSAT": Layout(
        "eurosat",
        "2750",
        "{label}/{label}_{n}.jpg",
        (("AnnualCrop", "Annual Crop Land"), ("Forest", "Forest"), ("SeaLake", "Sea or Lake")),
    ),
    "UCF101": Layout(
        "ucf101",
        "UCF-101-midframes",
        "{label}/v_g01_c{n:02d}.jpg",
        same("Apply_Eye_Makeup", "Archery", "Baby_Crawling", "Yo_Yo", "Writing_On_Board"),
    ),
}


def write(root: Path, name: str) -> Path:
    """A dataset of COUNTS images a class below `root`; returns its own folder."""
    layout = LAYOUTS[name]
    folder = root / layout.folder
    rng = np.random.default_rng(0)
    rows: dict[str, list[tuple[str, int, str]]] = {split: [] for split in COUNTS}
    number = 0
    for label, (label_folder, classname) in enumerate(layout.classes):
        for n in range(1, sum(COUNTS.values()) + 1):
            number += 1
            split = "train" if n <= COUNTS["train"] else "test" if n > COUNTS["train"] + COUNTS["val"] else "val"
            half = "test" if split == "test" else "train"
            path = layout.images.format(label=label_folder, n=n, id=number, half=half)
            tiny.write_image(folder / layout.below / path, rng, label, (8, 8))
            rows[split].append((path, label, classname))
    if name in ("StanfordCars", "OxfordFlowers"):  # whose split files are not in the order of the labels
        for items in rows.values():
            random.Random(3).shuffle(items)
    if name == "FGVCAircraft":
        (folder / "variants.txt").write_text("".join(f"{classname}\n" for _, classname in layout.classes))
        for split, items in rows.items():
            lines = [f"{Path(path).stem} {classname}\n" for path, _, classname in items]
            (folder / f"images_variant_{split}.txt").write_text("".join(lines))
    else:
        (folder / f"split_zhou_{name}.json").write_text(json.dumps(rows))
    return folder


def write_all(root: Path) -> Path:
    """ImageNet, its four variants and CoOp's ten others below `root`."""
    tiny.imagenet_tree(root)
    for name in LAYOUTS:
        write(root, name)
    return root


class Datum:
    """As Dassl's, for a cache written without Dassl."""

    def __init__(self, path: str, label: int, classname: str) -> None:
        self._impath, self._label, self._domain, self._classname = path, label, 0, classname


def write_cache(file: Path, **splits: list) -> Path:
    """Pickle items of the host as CoOp would, with Dassl's Datum."""
    content = {
        split: [Datum(item.impath, item.label, item.classname) for item in items] for split, items in splits.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    pickled = pickle.dumps(content, protocol=2)  # names are lines of their own in this protocol
    ours, dassls = b"clayouts\nDatum\n", b"cdassl.data.datasets.base_dataset\nDatum\n"
    assert ours in pickled
    file.write_bytes(pickled.replace(ours, dassls))
    return file
