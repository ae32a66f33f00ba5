"""Features of frozen models kept on disk: what a model says of a view of an image is computed once, and then read.

A store belongs to one model as it computes (weights, resolution, normalisation, interpolation, precision). An entry is
known by the image's content and by the view's box and flip, not by a seed: no torch version, path or prompt changes it.
A feature takes 2 bytes a number in half precision and its view 17: 1,553 bytes for ViT-L/14's 768.

Each writer appends to files of its own, features before views, so that two may write at once, and what a killed one
left half is not there. Readers take the files of all.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError
from .hashing import hash64
from .split_record import write_whole
from .views import View, read_image

META = "store.json"
# One view of one image: 64 bits of a hash of the file's bytes, the box in its pixels, mirrored or not.
VIEW = np.dtype(
    [("image", "<u8"), ("left", "<u2"), ("top", "<u2"), ("width", "<u2"), ("height", "<u2"), ("flip", "u1")]
)
# A file that has been read: a hash of its path, its size and time of change; the hash of its bytes, and its pixels.
FILE = np.dtype(
    [("path", "<u8"), ("size", "<u8"), ("changed", "<i8"), ("image", "<u8"), ("width", "<u4"), ("height", "<u4")]
)


class Model(NamedTuple):
    """What an entry's numbers depend on beside the view.

    Attributes:
        name: for people. weights: hash of all weights and buffers. size: pixels. mean, std: of its normalisation.
        interpolation: of the view. precision: in which it computes. width: of a feature. dtype: of the numbers kept.
    """

    name: str
    weights: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    precision: str
    width: int
    dtype: str

    @property
    def folder(self) -> str:
        """A folder's name that no other model has."""
        digest = hashlib.sha256(json.dumps(self[1:]).encode()).hexdigest()[:12]
        plain = "".join(char if char.isalnum() else "-" for char in self.name)[-40:].strip("-")
        return f"{plain}-{self.size}px-{digest}"


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of names, shapes and values of all parameters and buffers, those that are not saved too."""
    found = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        found.update(plain.view(torch.uint8).numpy().tobytes() if plain.dim() else repr(plain.item()).encode())
    return found.hexdigest()


def view_records(images: Sequence[int], views: Iterable[View]) -> np.ndarray:
    """Entries' names: (n,) of dtype VIEW.

    Raises:
        UsageError: an image of more than 65,535 pixels a side, whose boxes have no room.
    """
    rows = [(image, *view) for image, view in zip(images, views, strict=True)]
    if any(max(row[1:5]) > np.iinfo(np.uint16).max for row in rows):
        raise UsageError("an image of more than 65,535 pixels a side: its views cannot be stored")
    return np.array(rows, dtype=VIEW)


class Store:
    """The entries of one model below a folder.

    Args:
        root: folder that holds the stores of all models. model: see Model.

    Raises:
        UsageError: what stands there is another model's; it names what differs.
    """

    def __init__(self, root: str | Path, model: Model) -> None:
        self.model = model
        self.folder = Path(root).expanduser() / model.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_meta()
        self._own = self._new_files()
        self.refresh()

    def _new_files(self) -> Path:
        return self.folder / f"{os.getpid()}-{time.time_ns():x}"

    def _check_meta(self) -> None:
        path, wanted = self.folder / META, json.loads(json.dumps(self.model._asdict()))
        if not path.is_file():
            write_whole(path, json.dumps(wanted, indent=1) + "\n")
        try:
            there: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} is no record of a store ({error}): move {self.folder} away") from error
        differ = [key for key in wanted if not isinstance(there, dict) or there.get(key) != wanted[key]]
        if differ:
            raise UsageError(f"{self.folder} holds features of another model, which differs in {differ}: move it away")

    def refresh(self) -> None:
        """Take in what others have written since."""
        self._features, names = [], []
        for path in sorted(self.folder.glob("*.views")):
            views = _records(path, VIEW)
            features = _matrix(path.with_suffix(".features"), self.model.width, np.dtype(self.model.dtype))
            whole = min(len(views), len(features))
            if whole:
                self._features.append(features[:whole])
                names.append(views[:whole])
        self._starts = np.cumsum([0, *map(len, names)])
        self._names = np.concatenate(names) if names else np.empty(0, VIEW)
        hashes = _hashes(self._names)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def __len__(self) -> int:
        return len(self._names)

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """Where entries are: (n,) int64, -1 for one that is not there.

        Args:
            wanted: (n,) of dtype VIEW.
        """
        found = np.full(len(wanted), -1)
        if not len(self):
            return found
        at = np.searchsorted(self._sorted, _hashes(wanted))
        candidates = self._order[np.minimum(at, len(self) - 1)]
        same = self._names[candidates] == wanted  # by name, so that equal hashes of others do no harm
        found[same] = candidates[same]
        return found

    def read(self, rows: np.ndarray) -> Tensor:
        """Features (n, width), in the dtype that is kept; rows as `rows` gives them, none of them -1."""
        if rows.min(initial=0) < 0 or rows.max(initial=-1) >= len(self):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of a store of {len(self)}")
        out = np.empty((len(rows), self.model.width), dtype=self.model.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = self._features[shard][rows[here] - self._starts[shard]]
        return torch.from_numpy(out)

    def append(self, views: np.ndarray, features: Tensor) -> None:
        """Add entries; `refresh` makes them found.

        Args:
            views: (n,) of dtype VIEW. features: (n, width).

        Raises:
            UsageError: not finite, which no training should read; the disk is full.
        """
        numbers = features.detach().cpu().to(getattr(torch, self.model.dtype)).numpy()
        if not np.isfinite(numbers).all():
            raise UsageError(f"{self.model.name} gives features that are not finite: nothing of this batch is stored")
        try:
            for suffix, content in ((".features", numbers), (".views", views)):  # a view stands for a whole feature
                with self._own.with_suffix(suffix).open("ab") as file:
                    file.write(np.ascontiguousarray(content).tobytes())
        except OSError as error:
            self._own = self._new_files()  # in the old ones a later view would stand for what is there by half
            raise UsageError(f"cannot write to {self.folder}: {error}") from error


class Content(NamedTuple):
    """What a view needs to know of an image file: 64 bits of a hash of its bytes; width and height in pixels."""

    image: int
    width: int
    height: int


class Contents:
    """What files hold, read once for each size and time of change of a file.

    Args:
        root: the stores' folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root).expanduser() / "files"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own = self.folder / f"{os.getpid()}-{time.time_ns():x}.files"
        records = [_records(path, FILE) for path in sorted(self.folder.glob("*.files"))]
        known = np.concatenate(records).tolist() if records else []
        self._known = {row[:3]: Content(*row[3:]) for row in known}

    def of(self, paths: Sequence[str]) -> list[Content]:
        """The content of each file.

        Raises:
            UnreadableImage: a file is no image.
        """
        found, new = [], []
        for path in paths:
            status = os.stat(path)
            place = int.from_bytes(hashlib.blake2b(os.path.abspath(path).encode(), digest_size=8).digest(), "little")
            name = (place, status.st_size, status.st_mtime_ns)
            if name not in self._known:
                digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=8).digest()
                self._known[name] = Content(int.from_bytes(digest, "little"), *read_image(path).size)
                new.append((*name, *self._known[name]))
            found.append(self._known[name])
        if new:
            with self._own.open("ab") as file:
                file.write(np.array(new, dtype=FILE).tobytes())
        return found


def _records(path: Path, dtype: np.dtype) -> np.ndarray:
    """The whole records of a file; a last one that is cut off is not there."""
    content = path.read_bytes()
    return np.frombuffer(content, dtype=dtype, count=len(content) // dtype.itemsize)


def _matrix(path: Path, width: int, dtype: np.dtype) -> np.ndarray:
    rows = path.stat().st_size // (width * dtype.itemsize) if path.is_file() else 0
    return np.memmap(path, dtype=dtype, mode="r", shape=(rows, width)) if rows else np.empty((0, width), dtype)


def _hashes(views: np.ndarray) -> np.ndarray:
    return hash64(*(views[name] for name in VIEW.names or ()))
