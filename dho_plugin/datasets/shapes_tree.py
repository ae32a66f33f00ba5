"""Write the demo world as PNG files in the folder layouts of ImageNet and its four shifted test sets."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from .drawn import write_once
from .shapes_render import CLASS_IDS, CLASS_NAMES, TEXTURES, render

VERSION = "shapes 2"
TRAIN_SEED = 1
TEST_SEED = 20_250_711
TRAIN_PER_CLASS, VAL_PER_CLASS, TEST_PER_CLASS, SHIFT_PER_CLASS = 80, 10, 50, 25
ALL_LABELS = tuple(range(len(CLASS_NAMES)))
# As ImageNet-A and -R hold 200 of the 1000 classes; both halves keep every shape and every texture.
ADVERSARIAL_LABELS = tuple(c for c in ALL_LABELS if (c // (2 * len(TEXTURES)) + c) % 2 == 0)
RENDITION_LABELS = tuple(c for c in ALL_LABELS if (c // len(TEXTURES) + c) % 2 == 0)

# top folder -> (image folder, domain, seed, images per class, labels, folders named by label number)
_Part = tuple[str, str, int, int, tuple[int, ...], bool]
_SETS: dict[str, tuple[_Part, ...]] = {
    "shapes": (
        ("images/train", "train", TRAIN_SEED, TRAIN_PER_CLASS, ALL_LABELS, False),
        ("images/val", "val", TRAIN_SEED, VAL_PER_CLASS, ALL_LABELS, False),
        ("images/test", "test", TEST_SEED, TEST_PER_CLASS, ALL_LABELS, False),
    ),
    "shapes-v2": (("shapes-v2", "v2", TEST_SEED, SHIFT_PER_CLASS, ALL_LABELS, True),),
    "shapes-sketch": (("images", "sketch", TEST_SEED, SHIFT_PER_CLASS, ALL_LABELS, False),),
    "shapes-adversarial": (("shapes-a", "adversarial", TEST_SEED, SHIFT_PER_CLASS, ADVERSARIAL_LABELS, False),),
    "shapes-rendition": (("shapes-r", "rendition", TEST_SEED, SHIFT_PER_CLASS, RENDITION_LABELS, False),),
}


def build_shapes_tree(root: Path) -> Path:
    """Draw the five demo sets below ``root`` unless they are there (see write_once); returns ``root``."""
    root = Path(root)

    def draw(folder: Path, names: list[str]) -> None:
        parts = [(folder / name, part) for name in names for part in _SETS[name]]
        total = sum(part[3] * len(part[4]) for _, part in parts)
        with tqdm(total=total, desc=f"drawing the demo images in {root}", unit="image", disable=None) as progress:
            for where, part in parts:
                _write_part(where, part, progress)
        lines = (f"{class_id} {name}\n" for class_id, name in zip(CLASS_IDS, CLASS_NAMES, strict=True))
        classnames = "".join(lines)
        for name in names:
            (folder / name / "classnames.txt").write_text(classnames, encoding="utf-8")

    write_once(root, list(_SETS), VERSION, draw)
    return root


def _write_part(folder: Path, part: _Part, progress: tqdm) -> None:
    images, domain, seed, count, labels, numbered = part
    for label in labels:
        target = folder / images / (str(label) if numbered else CLASS_IDS[label])
        target.mkdir(parents=True)
        pixels = render(domain, torch.full((count,), label), torch.arange(count), seed).permute(0, 2, 3, 1).numpy()
        for n, picture in enumerate(pixels):
            Image.fromarray(picture).save(target / f"{n:04d}.png", compress_level=1)
        progress.update(count)
