"""Features of frozen models kept on disk: what a model says of a view of an image is computed once, and then read.

A store belongs to one model as it computes (weights, resolution, normalisation, interpolation, precision). An entry is
known by the image's content and by the view's box and flip, not by a seed: no torch version, path or prompt changes it.
A feature takes 2 bytes a number in half precision and its view 17: 1,553 bytes for ViT-L/14's 768.

Each writer appends to files of its own (blocks.py), so that two may write at once. Readers take the files of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .blocks import BLOCKS, Shard, Writer
from .errors import UsageError
from .hashing import hash64
from .sealed import usable, write_whole

META = "store.json"
# One view of one image: 64 bits of a hash of the file's bytes, the box in its pixels, mirrored or not.
VIEW = np.dtype(
    [("image", "<u8"), ("left", "<u2"), ("top", "<u2"), ("width", "<u2"), ("height", "<u2"), ("flip", "u1")]
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

    def folder(self, root: Path) -> Path:
        """A folder that no other model has; the one that is there already, whatever the model was called then."""
        mark = f"{self.size}px-{hashlib.sha256(json.dumps(self[1:]).encode()).hexdigest()[:12]}"
        plain = "".join(char if char.isalnum() else "-" for char in self.name)[-40:].strip("-")
        return next(iter(sorted(root.glob(f"*-{mark}"))), root / f"{plain}-{mark}")


def kept_dtype(precision: str) -> str:
    """In which a store keeps the features of a model that computes so (Precision.name)."""
    return "float32" if precision == "fp32" else "float16"


def bytes_of_view(width: int, precision: str) -> int:
    """What a feature of `width` numbers and the name of its view take."""
    return VIEW.itemsize + width * np.dtype(kept_dtype(precision)).itemsize


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of names, shapes and values of all parameters and buffers, those that are not saved too."""
    found = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def view_records(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Entries' names: (n,) of dtype VIEW.

    Args:
        images: (n,) hashes of the files' bytes. boxes: (n, 5), see views.draw_views.

    Raises:
        UsageError: an image of more than 65,535 pixels a side, whose boxes have no room.
    """
    if boxes.max(initial=0) > np.iinfo(np.uint16).max:
        raise UsageError("an image of more than 65,535 pixels a side: its views cannot be stored")
    records = np.empty(len(images), dtype=VIEW)
    for name, column in zip(VIEW.names or (), (images, *np.asarray(boxes).T), strict=True):
        records[name] = column
    return records


def same_views(views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones of (n,) views, those of an image together, and where among them each of the n is: (n,)."""
    order = np.lexsort([views[name] for name in reversed(VIEW.names or ())])
    in_order = views[order]
    first = np.append(True, in_order[1:] != in_order[:-1])[: len(views)]
    at = np.empty(len(views), dtype=np.int64)
    at[order] = np.cumsum(first) - 1
    return in_order[first], at


class Store:
    """The entries of one model below a folder.

    Args:
        root: folder that holds the stores of all models. model: see Model.

    Raises:
        UsageError: what stands there is another model's, it names what differs; a folder that cannot be used.
    """

    def __init__(self, root: str | Path, model: Model) -> None:
        self.model = model
        self.folder = model.folder(Path(root).expanduser())
        with using(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_meta()
        self._own = Writer(self.folder)
        self._shards: list[Shard] = []
        self.refresh()

    def _check_meta(self) -> None:
        path, wanted = self.folder / META, json.loads(json.dumps(self.model._asdict()))
        if not path.is_file():
            write_whole(path, json.dumps(wanted, indent=1) + "\n")
        try:
            there: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} is no record of a store ({error}): move {self.folder} away") from error
        differ = [key for key in list(wanted)[1:] if not isinstance(there, dict) or there.get(key) != wanted[key]]
        if differ:
            raise UsageError(f"{self.folder} holds features of another model, which differs in {differ}: move it away")

    def refresh(self) -> None:
        """Take in what this and others have written since."""
        self.end_block()
        before, self._shards = {shard.path: shard for shard in self._shards}, []
        for path in sorted(self.folder.glob(f"*{BLOCKS}")):
            with using(self.folder):
                shard = Shard(path, VIEW, self.model.width, np.dtype(self.model.dtype), before.get(path))
            self._shards.append(shard)
        self._starts = np.cumsum([0, *(len(shard.views) for shard in self._shards)])
        self._build_index()

    def _build_index(self) -> None:
        names = [np.empty(0, VIEW), *(shard.views for shard in self._shards)]
        self._index = Index(np.concatenate(names), VIEW.names or ())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._index.records["width"]))  # which a damaged one has none of

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """Where entries are: (n,) int64, -1 for one that is not there, or not as it was written.

        Args:
            wanted: (n,) of dtype VIEW.
        """
        found = self._index.rows(wanted)
        while not self._whole(found[found >= 0]):
            self._build_index()
            found = self._index.rows(wanted)
        return found

    def _whole(self, rows: np.ndarray) -> bool:
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        return all([self._shards[at].look(rows[shards == at] - self._starts[at]) for at in np.unique(shards).tolist()])

    def read(self, rows: np.ndarray) -> Tensor:
        """Features (n, width), in the dtype that is kept; rows as `rows` gives them, none of them -1."""
        if rows.min(initial=0) < 0 or rows.max(initial=-1) >= self._starts[-1]:
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of a store of {self._starts[-1]}")
        out = np.empty((len(rows), self.model.width), dtype=self.model.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = self._shards[shard].features[rows[here] - self._starts[shard]]
        return torch.from_numpy(out)

    def append(self, views: np.ndarray, features: Tensor) -> None:
        """Add entries; they are kept from `end_block` on, at the latest some seconds later, and found after `refresh`.

        Args:
            views: (n,) of dtype VIEW. features: (n, width).

        Raises:
            UsageError: not finite, which no training should read; the disk is full.
        """
        numbers = features.detach().cpu().to(getattr(torch, self.model.dtype)).numpy()
        if not np.isfinite(numbers).all():
            raise UsageError(f"{self.model.name} gives features that are not finite: nothing of this batch is stored")
        with using(self.folder):
            self._own.append(views, numbers)

    def end_block(self) -> None:
        """Have what was appended on the disk, whatever happens next; raises UsageError for a full one."""
        with using(self.folder):
            self._own.end_block()


class Index:
    """Where records are by some of their fields; by name, so that equal hashes of others do no harm."""

    def __init__(self, records: np.ndarray, fields: Sequence[str]) -> None:
        self.records, self.fields = records, list(fields)
        hashes = self._hashes(records)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def _hashes(self, records: np.ndarray) -> np.ndarray:
        return hash64(*(records[field] for field in self.fields))

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """(n,) int64, -1 for a record that is not there."""
        found = np.full(len(wanted), -1)
        if not len(self.records):
            return found
        hashes = self._hashes(wanted)
        order, at = np.argsort(hashes), np.empty(len(wanted), dtype=np.int64)
        at[order] = np.searchsorted(self._sorted, hashes[order])  # in order: millions out of order miss every cache
        candidates = self._order[np.minimum(at, len(self.records) - 1)]
        same = np.logical_and.reduce([self.records[field][candidates] == wanted[field] for field in self.fields])
        found[same] = candidates[same]
        return found


def using(folder: Path) -> AbstractContextManager[None]:
    """Within this context an error of the system is said of STORE.DIR."""
    return usable(folder, "give STORE.DIR a folder")
