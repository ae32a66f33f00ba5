"""scikit-learn's digits as a demo on real images: 1,797 scans of 8 x 8 pixels, which its package carries.

500 images are a teacher's own: `DigitsClean`, `DigitsNoisy` and `DigitsConfused` train on them, with labels that are
true, wrong at random or wrong systematically. `Digits` is what a student is given: 700 others, 100 for validation.
All four test on the same 497. The pictures are the same whatever a run's seed is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..hashing import uniform
from ..host import Datum
from ..registration import register_dataset
from ..views import permutation
from .drawn import write_once
from .imagenet import TrainableFolders

VERSION = "digits 1"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARTS = {"teacher": 500, "train": 700, "val": 100, "test": 497}
CONFUSIONS = {3: 8, 4: 9, 1: 7, 5: 6}
_SPLIT_SEED, _LABEL_SEED = 0, 1


def build_digits(root: Path) -> None:
    """Write the digits as PNG files below `root` unless they are there (see write_once).

    A file is `digits/images/<part>/<digit>/<number of the image in scikit-learn>.png`, grey values round(255 v / 16).

    Raises:
        UsageError: they are not there, and scikit-learn is not installed.
    """

    def write(folder: Path, names: list[str]) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UsageError("the digits come with scikit-learn, which is missing: pip install scikit-learn") from error
        digits = load_digits()
        pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
        part = np.repeat(list(PARTS), list(PARTS.values()))
        for name in names:
            for place, index in enumerate(permutation(len(pixels), seed=_SPLIT_SEED, stream=0, pass_=0).tolist()):
                file = folder / name / "images" / part[place] / str(digits.target[index]) / f"{index:04d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[index]).save(file)
            lines = "".join(f"{digit} {word}\n" for digit, word in enumerate(NAMES))
            (folder / name / "classnames.txt").write_text(lines, encoding="utf-8")

    write_once(root, [Digits.folder], VERSION, write)


def spoiled(digit: int, index: int, kind: str) -> int:
    """The label that a teacher reads for an image, a function of its arguments alone.

    Args:
        digit: the true label. index: number of the image in scikit-learn's set.
        kind: "clean"; "noisy": with probability 0.4 any of the ten digits; "confused": with probability 0.5 the digit
            that CONFUSIONS has for this one.
    """
    hit, other = uniform(_LABEL_SEED, index, np.arange(2)).tolist()
    if kind == "confused" and hit < 0.5:
        return CONFUSIONS.get(digit, digit)
    if kind == "noisy" and hit < 0.4:
        return int(10 * other)
    return digit


@register_dataset
class Digits(TrainableFolders):
    """What a student is given: 700 training, 100 validation and 497 test images, all labels true."""

    draws_itself: ClassVar[bool] = True
    folder = "digits"
    test_folder = "test"

    def __init__(self, cfg: Any) -> None:
        build_digits(Path(cfg.DATASET.ROOT).expanduser())
        super().__init__(cfg)


@register_dataset
class DigitsClean(Digits):
    """The teacher's 500 images with their true labels; no validation set, the test set of Digits."""

    train_folder = "teacher"
    kind: ClassVar[str] = "clean"

    def read(self, images: str) -> list[Datum]:
        items = super().read(images)
        if Path(images).name != self.train_folder:
            return items
        names = {item.label: item.classname for item in items}
        labels = [spoiled(item.label, int(Path(item.impath).stem), self.kind) for item in items]
        return [
            Datum(impath=item.impath, label=label, domain=item.domain, classname=names[label])
            for item, label in zip(items, labels, strict=True)
        ]

    def splits(self, cfg: Any) -> dict[str, list[Datum]]:
        return {**super().splits(cfg), "val": []}


@register_dataset
class DigitsNoisy(DigitsClean):
    """As DigitsClean, labels wrong at random."""

    kind = "noisy"


@register_dataset
class DigitsConfused(DigitsClean):
    """As DigitsClean, labels wrong systematically: half of the 3s called 8, 4s 9, 1s 7, 5s 6."""

    kind = "confused"
