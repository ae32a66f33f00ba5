"""How training images are read and cut into views: by Pillow, as tensors, or on the GPU (INPUT.READER).

The boxes are the same whatever reads. Pillow's pixels are CoOp's, and evaluations have no others. A plain JPEG file
(8 bits, RGB or grey, whole) may be decoded by torchvision instead, to the same pixels on a CPU; its resized views
differ from Pillow's in the rounding. Every other file goes through views.read_image, and is refused there.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from .errors import UsageError
from .predicting import MAX_ASPECT, MAX_PIXELS
from .views import View, read_image, render_into

# pil: Pillow decodes and resizes. tensor: torchvision does, in the loader's workers. cuda: the workers read files and
# draw boxes, the main process decodes and resizes on the GPU, or without one as `tensor` does.
READERS = ("pil", "tensor", "cuda")
CPU = torch.device("cpu")
CHUNK = 64  # files that are decoded at a time, since all their pixels are in memory
_END = b"\xff\xd9"  # of every whole JPEG file


class Picture(NamedTuple):
    """An image as it was read: width and height in pixels, and what is known of them.

    content: Pillow's RGB image, pixels uint8 (3, height, width), or a plain JPEG file's bytes, uint8 (n,).
    """

    width: int
    height: int
    content: Image.Image | Tensor


def check_reader(reader: str, device: torch.device) -> None:
    """Let a small JPEG be decoded as `reader` would.

    Raises:
        UsageError: this torchvision cannot; its decoders are an optional part, which later releases leave out.
    """
    if reader == "pil":
        return
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    where = device if reader == "cuda" else CPU
    try:
        _decode_all([_as_tensor(file.getvalue())], where)
    except Exception as error:  # of several kinds: no such function, no compiled part, no decoder on the GPU
        raise UsageError(
            f"INPUT.READER {reader}: torchvision {torchvision.__version__} decodes no JPEG on {where.type} "
            f"({type(error).__name__}: {error}): take pil{' or tensor' * (where.type == 'cuda')}, or a torchvision of "
            "0.20 or later that was built with its JPEG decoder"
        ) from error


def recipe(interpolation: str, reader: str, device: torch.device) -> str:
    """The name of what a view's pixels depend on beside image, box, flip and size: "bicubic", "bicubic, tensor".

    Args:
        interpolation: INPUT.INTERPOLATION. device: where reader `cuda` decodes; on a CPU it gives `tensor`'s pixels.
    """
    if reader == "cuda" and device.type == "cpu":
        reader = "tensor"
    return interpolation if reader == "pil" else f"{interpolation}, {reader}"


class Reader:
    """From files to views.

    Args:
        name: one of READERS. interpolation: of the views. device: where `cuda` decodes and cuts.
    """

    def __init__(self, name: str, interpolation: InterpolationMode, device: torch.device = CPU) -> None:
        self.name, self.interpolation, self.device = name, interpolation, device

    def open(self, path: str | Path) -> Picture:
        """Read an image file, for `cuda` without decoding it.

        Raises:
            UnreadableImage: see views.read_image.
        """
        plain = _plain_jpeg(path) if self.name != "pil" else None
        if plain is not None:
            if self.name == "cuda":
                return plain
            try:
                return plain._replace(content=_decode(plain.content))
            except RuntimeError:  # a broken file; what that means is read_image's to say
                pass
        image = read_image(path)
        return Picture(image.width, image.height, image if self.name == "pil" else _pixels(image))

    def views(self, pictures: Iterable[tuple[Picture, View]], count: int, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Views by key, each uint8 (count, 3, size, size); for `cuda` what `receive` makes them of.

        Args:
            pictures: `count` images and their boxes, taken one by one. sizes: resolution by key.
        """
        if self.name == "cuda":
            return {**_packed(pictures), "sizes": dict(sizes)}
        return self._cut(((picture.content, view) for picture, view in pictures), count, sizes, CPU)

    def receive(self, batch: dict[str, Any], paths: Sequence[str]) -> None:
        """In the main process, put the views into a batch of `views` where they are not there yet.

        Args:
            paths: the batch's files, from which those are read again that the GPU's decoder refuses.

        Raises:
            UnreadableImage: such a file cannot be read otherwise either.
        """
        if "encoded" not in batch:
            return
        contents, views = _unpacked(batch.pop("encoded"), batch.pop("pieces"))
        pairs = zip(self._decoded(contents, paths), views, strict=True)
        batch.update(self._cut(pairs, len(views), batch.pop("sizes"), self.device))

    def _cut(
        self,
        pairs: Iterable[tuple[Image.Image | Tensor, View]],
        count: int,
        sizes: Mapping[str, int],
        device: torch.device,
    ) -> dict[str, Tensor]:
        """Views by key on the device, each size cut once and straight into its place in the batch."""
        by_size = {
            size: torch.empty(count, 3, size, size, dtype=torch.uint8, device=device) for size in set(sizes.values())
        }
        for row, (content, view) in enumerate(pairs):
            for size, out in by_size.items():
                if isinstance(content, Tensor):
                    out[row] = cut_pixels(content, view, size, self.interpolation)
                else:
                    render_into(out[row], content, view, self.interpolation)
        return {key: by_size[size] for key, size in sizes.items()}

    def _decoded(self, contents: Sequence[Tensor], paths: Sequence[str]) -> Iterator[Tensor]:
        """Pixels on the device, a few images at a time."""
        for start in range(0, len(contents), CHUNK):
            part = slice(start, start + CHUNK)
            for path, pixels in zip(paths[part], self._pixels_of(contents[part]), strict=True):
                yield (pixels if pixels is not None else _pixels(read_image(path))).to(self.device)

    def _pixels_of(self, contents: Sequence[Tensor]) -> list[Tensor | None]:
        """Pixels of files and of images; None for a file that cannot be decoded."""
        files = [number for number, content in enumerate(contents) if content.dim() == 1]
        found: list[Tensor | None] = list(contents)
        try:
            decoded: list[Tensor | None] = list(_decode_all([contents[number] for number in files], self.device))
        except RuntimeError:  # one of them, the message does not say which
            decoded = [_decoded_or_none(contents[number], self.device) for number in files]
        for number, pixels in zip(files, decoded, strict=True):
            found[number] = pixels
        return found


def cut_pixels(pixels: Tensor, view: View, size: int, interpolation: InterpolationMode) -> Tensor:
    """views.render for an image as a tensor: uint8 (3, H, W) -> (3, size, size), on its device, antialiased."""
    if interpolation == InterpolationMode.NEAREST:
        interpolation = InterpolationMode.NEAREST_EXACT  # Pillow's nearest
    box = (view.top, view.left, view.height, view.width)
    cut = TF.resized_crop(pixels, *box, [size, size], interpolation, antialias=True)
    return cut.flip(-1) if view.flip else cut


def _plain_jpeg(path: str | Path) -> Picture | None:
    """A plain JPEG file's bytes; None for any other file, and for one that read_image has to say something about."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            short, long = sorted(image.size)
            known = image.format == "JPEG" and image.mode in ("RGB", "L")
            if not known or short * long > MAX_PIXELS or long > MAX_ASPECT * short:
                return None
            width, height = image.size
            file.seek(0)
            content = file.read()
    except Exception:  # Pillow's decoders raise whatever a broken file makes them raise
        return None
    return Picture(width, height, _as_tensor(content)) if content.endswith(_END) else None


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def _decode(content: Any) -> Tensor:
    return torchvision.io.decode_jpeg(content, torchvision.io.ImageReadMode.RGB)


def _decode_all(contents: list[Tensor], device: torch.device) -> list[Tensor]:
    if device.type == "cpu" or not contents:
        return [_decode(content) for content in contents]
    return torchvision.io.decode_jpeg(contents, torchvision.io.ImageReadMode.RGB, device=device)


def _decoded_or_none(content: Tensor, device: torch.device) -> Tensor | None:
    try:
        return _decode_all([content], device)[0]
    except RuntimeError:
        return None


def _packed(pictures: Iterable[tuple[Picture, View]]) -> dict[str, Tensor]:
    """Files' bytes and other images' pixels behind each other in one tensor, as processes pass few tensors fastest.

    Returns:
        "encoded": uint8 (bytes,); "pieces": int64 (N, 9), of each image: its number of bytes, whether it is a file,
        its width and height, and its view.
    """
    contents, rows = [], []
    for (width, height, content), view in pictures:
        assert isinstance(content, Tensor)  # as `open` leaves it
        contents.append(content.reshape(-1))
        rows.append((content.numel(), content.dim() == 1, width, height, *view))
    return {"encoded": torch.cat(contents), "pieces": torch.tensor(rows, dtype=torch.int64)}


def _unpacked(encoded: Tensor, pieces: Tensor) -> tuple[list[Tensor], list[View]]:
    rows = pieces.tolist()
    parts = encoded.split([row[0] for row in rows])
    contents = [
        part if is_file else part.view(3, height, width)
        for part, (_, is_file, width, height, *_) in zip(parts, rows, strict=True)
    ]
    views = [View(left, top, width, height, bool(flip)) for *_, left, top, width, height, flip in rows]
    return contents, views
