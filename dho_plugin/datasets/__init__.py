"""Datasets in CoOp's folder layouts. Importing this package registers them; a name the host owns stays the host's."""

from __future__ import annotations

from .catalogue import CATALOGUE, CLASSES, TEN
from .digits import Digits, DigitsClean, DigitsConfused, DigitsNoisy
from .folder import Folder
from .imagenet import ImageNet, ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2
from .shapes import Shapes, ShapesA, ShapesR, ShapesSketch, ShapesV2

# The distribution shifts that stand beside a dataset's own test set, in the paper's column order.
SHIFTS: dict[str, dict[str, str]] = {
    "ImageNet": {"V2": "ImageNetV2", "Sketch": "ImageNetSketch", "R": "ImageNetR", "A": "ImageNetA"},
    "Shapes": {"V2": "ShapesV2", "Sketch": "ShapesSketch", "R": "ShapesR", "A": "ShapesA"},
}

__all__ = [
    "CATALOGUE",
    "CLASSES",
    "SHIFTS",
    "TEN",
    "Digits",
    "DigitsClean",
    "DigitsConfused",
    "DigitsNoisy",
    "Folder",
    "ImageNet",
    "ImageNetA",
    "ImageNetR",
    "ImageNetSketch",
    "ImageNetV2",
    "Shapes",
    "ShapesA",
    "ShapesR",
    "ShapesSketch",
    "ShapesV2",
]
