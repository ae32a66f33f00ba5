"""Order and augmentation as pure functions.

The order of pass e over a set is f(seed, e); the crop and flip of an image in pass e are f(seed, image, e). Nothing is
drawn from a generator whose state depends on history, workers or library version, so every method compared sees the
same images and crops, a run continues anywhere, and a stored teacher answer stays valid.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from .errors import UsageError
from .hashing import hash64, uniform
from .predicting import INTERPOLATIONS as PILLOW
from .predicting import open_rgb, printable

INTERPOLATIONS = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}
_CROP_ATTEMPTS = 10
_COUNTERS = np.arange(1 + 4 * _CROP_ATTEMPTS)
_RATIO = (3 / 4, 4 / 3)


class View(NamedTuple):
    """One augmented view: a box in pixels of the original image, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


class ViewPolicy(NamedTuple):
    """Which views are drawn: random resized crop (area `scale`, aspect 3/4 to 4/3) and horizontal flip, or neither."""

    crop: bool = True
    flip: bool = True
    scale: tuple[float, float] = (0.5, 1.0)


def image_key(path: str | Path, root: str | Path) -> int:
    """An image's identity: a hash of its path below the dataset root, so that moving the root changes nothing."""
    there, above = _absolute(path), _absolute(os.path.expanduser(root)).rstrip(os.sep) + os.sep
    relative = there[len(above) :] if there.startswith(above) else os.path.basename(there)
    name = relative.replace(os.sep, "/").encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


_ODD = re.compile(r"//|/\.(/|$)|/$|^(?!/)")  # in names that pathlib would change; it takes several times as long


def _absolute(path: str | Path) -> str:
    name = str(path)
    return str(Path(name).absolute()) if os.sep != "/" or _ODD.search(name) else name


def permutation(size: int, *, seed: int, stream: int, pass_: int) -> np.ndarray:
    """The order of one pass over a set: int64 (size,), a permutation that depends on its arguments alone."""
    return np.argsort(hash64(seed, stream, pass_, np.arange(size)), kind="stable")


class Order:
    """An endless sequence over a set: pass after pass, each a fresh permutation, none cut off.

    Args:
        size: number of images. seed: the run's seed. stream: tells labelled (0) from unlabelled (1) images.
    """

    def __init__(self, size: int, *, seed: int, stream: int) -> None:
        if size < 1:
            raise UsageError("an empty set of images has no order: check the split that was asked for")
        self.size, self.seed, self.stream = size, seed, stream
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The image at a position of the endless sequence: (index, pass)."""
        pass_, offset = divmod(position, self.size)
        if self._cached[0] != pass_:
            self._cached = (pass_, permutation(self.size, seed=self.seed, stream=self.stream, pass_=pass_))
        return int(self._cached[1][offset]), pass_

    def span(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The images at `count` positions from `start` on: indices and passes, each int64 (count,)."""
        passes = np.arange(start, start + count) // self.size
        indices = np.empty(count, dtype=np.int64)
        for pass_ in np.unique(passes).tolist():
            here = slice(max(0, pass_ * self.size - start), (pass_ + 1) * self.size - start)
            first = max(0, start - pass_ * self.size)
            self[pass_ * self.size]
            indices[here] = self._cached[1][first : first + len(indices[here])]
        return indices, passes


def draw_view(width: int, height: int, policy: ViewPolicy, *, seed: int, key: int, pass_: int) -> View:
    """The view of one image of width x height pixels in one pass; see draw_views."""
    box = draw_views(np.array([width]), np.array([height]), policy, seed=seed, keys=np.array([key]), passes=pass_)
    left, top, w, h, flip = box[0].tolist()
    return View(left, top, w, h, bool(flip))


def draw_views(
    widths: np.ndarray,
    heights: np.ndarray,
    policy: ViewPolicy,
    *,
    seed: int,
    keys: np.ndarray,
    passes: int | np.ndarray,
) -> np.ndarray:
    """The views of n images: (n, 5) int64, left, top, width, height in pixels and mirrored or not.

    The crop follows the usual rule: area uniform in `scale`, log aspect ratio uniform, ten attempts, then the largest
    central box of an allowed aspect.

    Args:
        widths, heights: (n,) of the images in pixels. keys: (n,), see image_key. passes: (n,), or one for all.
    """
    passes = np.broadcast_to(passes, len(keys))[:, None]
    draws = uniform(seed, keys[:, None], passes, _COUNTERS if policy.crop else _COUNTERS[:1])
    flips = policy.flip & (draws[:, 0] < 0.5)
    if not policy.crop:
        return np.stack([0 * widths, 0 * heights, widths, heights, flips], axis=1)
    w = np.minimum(widths, np.maximum(1, np.rint(heights * _RATIO[1])))
    h = np.minimum(heights, np.maximum(1, np.rint(widths / _RATIO[0])))
    boxes = np.stack([(widths - w) // 2, (heights - h) // 2, w, h, flips], axis=1).astype(np.int64)
    (low, high), logs = policy.scale, np.log(_RATIO)
    waiting = np.arange(len(keys))
    for attempt in draws[:, 1:].reshape(-1, _CROP_ATTEMPTS, 4).transpose(1, 2, 0):
        area, aspect, x, y = attempt[:, waiting]
        width, height = widths[waiting], heights[waiting]
        target = width * height * (low + (high - low) * area)
        ratio = np.exp(logs[0] + (logs[1] - logs[0]) * aspect)
        w, h = np.rint(np.sqrt(target * ratio)), np.rint(np.sqrt(target / ratio))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        left, top = x * (width - w + 1), y * (height - h + 1)
        boxes[waiting[fits], :4] = np.stack([left, top, w, h], axis=1)[fits]  # cut off to whole pixels
        waiting = waiting[~fits]
        if not len(waiting):
            break
    return boxes


class UnreadableImage(UsageError):
    """A file that is missing, no image, cut off, or of a kind that is refused.

    torch hands an error of a loader worker over as text with its traceback, of which only the message is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


def read_image(path: str | Path) -> Image.Image:
    """Open an image as 8-bit RGB, by the rule of predicting.open_rgb, which exported models have too.

    In short: Pillow's convert("RGB") as in CoOp; alpha dropped, first frame of an animation, EXIF orientation ignored;
    16-bit grey scaled to 8 bits; no image of more than 179 million pixels or 500 times as long as wide.

    Raises:
        UnreadableImage: the file cannot be decoded so; the message names it. INPUT.BAD_IMAGES says what training then
            does, an evaluation always stops.
    """
    return opened(path, open_rgb)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file in pixels, from its first bytes alone.

    Raises:
        UnreadableImage: the file is no image.
    """

    def size(path: str | Path) -> tuple[int, int]:
        with Image.open(path) as image:
            return image.size

    return opened(path, size)


def opened(path: str | Path, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of an image's path; whatever it raises becomes an UnreadableImage that names the file."""
    try:
        return read(path)
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        raise UnreadableImage(
            f"cannot read the image {printable(str(path))}: {printable(str(error) or type(error).__name__)}. Replace "
            "the file or remove it from the split; INPUT.BAD_IMAGES skip lets training pass over a few such files"
        ) from error


def fault(path: str | Path, *, decode: bool) -> str:
    """What is wrong with an image file, "" for nothing: by its first bytes, or by decoding it as training does."""
    try:
        if not os.path.getsize(path):
            return "empty"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if decode:
                open_rgb(path)
            else:
                Image.open(path).close()
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        return f"{type(error).__name__}: {error}"
    return ""


def render(image: Image.Image, view: View, size: int, interpolation: InterpolationMode) -> Tensor:
    """Cut a view out of an image at one resolution: uint8 (3, size, size). Call it once for each size wanted."""
    cut = torch.empty(3, size, size, dtype=torch.uint8)
    render_into(cut, image, view, interpolation)
    return cut


def render_into(out: Tensor, image: Image.Image, view: View, interpolation: InterpolationMode) -> None:
    """The same as torchvision's resized_crop and hflip, written to its place in a batch: uint8 (3, size, size)."""
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    cut = image.crop(box).resize((out.shape[2], out.shape[1]), PILLOW[interpolation.value])
    for name, channel in zip("RGB", out.numpy(), strict=True):  # each by itself: faster than turning the axes round
        pixels = np.frombuffer(cut.tobytes("raw", name), dtype=np.uint8).reshape(channel.shape)
        channel[:] = pixels[:, ::-1] if view.flip else pixels


def center_view(image: Image.Image, size: int, interpolation: InterpolationMode) -> Tensor:
    """The test view, as Dassl builds it: shorter side to `size`, centre crop; uint8 (3, size, size)."""
    return _to_uint8(TF.center_crop(TF.resize(image, size, interpolation), [size, size]))


def _to_uint8(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
