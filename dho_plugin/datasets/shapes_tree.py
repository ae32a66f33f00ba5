"""Write the demo world as PNG files in the folder layouts of ImageNet and its four shifted test sets."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..errors import UsageError
from .shapes_render import CLASS_IDS, CLASS_NAMES, TEXTURES, render

VERSION = "shapes 2"
TRAIN_SEED = 1
TEST_SEED = 20_250_711
TRAIN_PER_CLASS, VAL_PER_CLASS, TEST_PER_CLASS, SHIFT_PER_CLASS = 80, 10, 50, 25
STAMP = "VERSION.txt"
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
    """Draw the five demo sets under ``root`` unless this version is already there; returns ``root``.

    Each set is written to a temporary folder and renamed into place, so a reader never sees half a set and two
    processes may build at once. A set of another version is replaced; a folder of the same name that this function did
    not write raises UsageError.
    """
    root = Path(root)
    missing = [name for name in _SETS if not _is_current(root / name)]
    if not missing:
        return root
    for name in missing:
        _refuse_foreign(root / name)
    root.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".shapes-", dir=root))
    try:
        parts = [(workspace / name, part) for name in missing for part in _SETS[name]]
        total = sum(part[3] * len(part[4]) for _, part in parts)
        with tqdm(total=total, desc=f"drawing the demo images in {root}", unit="image", disable=None) as progress:
            for folder, part in parts:
                _write_part(folder, part, progress)
        for name in missing:
            _finish(workspace / name)
            _install(workspace / name, root / name, workspace)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return root


def _is_current(folder: Path) -> bool:
    try:
        return (folder / STAMP).read_text(encoding="utf-8").strip() == VERSION
    except FileNotFoundError:
        return False


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / STAMP).exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} exists but was not written by this demo (it has no {STAMP}). "
            "Move it away, or choose another data root."
        )


def _write_part(folder: Path, part: _Part, progress: tqdm) -> None:
    images, domain, seed, count, labels, numbered = part
    for label in labels:
        target = folder / images / (str(label) if numbered else CLASS_IDS[label])
        target.mkdir(parents=True)
        pixels = render(domain, torch.full((count,), label), torch.arange(count), seed).permute(0, 2, 3, 1).numpy()
        for n, picture in enumerate(pixels):
            Image.fromarray(picture).save(target / f"{n:04d}.png", compress_level=1)
        progress.update(count)


def _finish(folder: Path) -> None:
    lines = (f"{class_id} {name}\n" for class_id, name in zip(CLASS_IDS, CLASS_NAMES, strict=True))
    (folder / "classnames.txt").write_text("".join(lines), encoding="utf-8")
    (folder / STAMP).write_text(VERSION + "\n", encoding="utf-8")


def _install(built: Path, target: Path, workspace: Path) -> None:
    """Move ``built`` to ``target``; where another process was faster with the same version, keep the other one."""
    if _is_current(target):
        return
    # No old version, or losing the race to move it away, is fine: the winner is installing the same pictures.
    with suppress(FileNotFoundError):
        os.rename(target, workspace / f"{target.name}.old")
    try:
        os.rename(built, target)
    except OSError:
        if not _is_current(target):
            raise
