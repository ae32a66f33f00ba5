"""The built-in demo `shapes`: pictures of 32 textured shapes, with four shifted test sets, in ImageNet's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ..registration import register_dataset
from .imagenet import ClassFolders, TrainableFolders
from .shapes_tree import build_shapes_tree


class _Drawn(ClassFolders):
    """Draws the pictures before the first read."""

    draws_itself: ClassVar[bool] = True  # so that no --root is needed

    def __init__(self, cfg: Any) -> None:
        build_shapes_tree(Path(cfg.DATASET.ROOT).expanduser())
        super().__init__(cfg)


@register_dataset
class Shapes(_Drawn, TrainableFolders):
    """32 classes, 80 training, 10 validation and 50 test pictures of 32 x 32 pixels a class."""

    folder = "shapes"
    test_folder = "test"


@register_dataset
class ShapesV2(_Drawn):
    """Drawn anew, somewhat harder; stands for ImageNet-V2, whose folders are numbers too."""

    folder = "shapes-v2"
    images = "shapes-v2"
    numbered = True


@register_dataset
class ShapesSketch(_Drawn):
    """Outlines on paper; stands for ImageNet-Sketch."""

    folder = "shapes-sketch"


@register_dataset
class ShapesA(_Drawn):
    """Small, cluttered, faint; half of the classes, as ImageNet-A has a fifth."""

    folder = "shapes-adversarial"
    images = "shapes-a"


@register_dataset
class ShapesR(_Drawn):
    """Other renderings; half of the classes, as ImageNet-R has a fifth."""

    folder = "shapes-rendition"
    images = "shapes-r"
