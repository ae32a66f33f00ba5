"""Labelled subsets: SimCLR's lists of 1 % and 10 % of ImageNet, the DHO authors' draws, or a file of one's own."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch

from .balanced import balanced_draw
from .datasets.lists import read_lines
from .errors import UsageError, did_you_mean
from .host import Datum, build_dataset
from .split_record import recorded


class PublicList(NamedTuple):
    """A list on the web: one file name a line. sha256 of its content."""

    url: str
    sha256: str


_COMMIT = "383d4143fd8cf7879ae10f1046a9baeb753ff438"
_SIMCLR = f"https://raw.githubusercontent.com/google-research/simclr/{_COMMIT}/imagenet_subsets"
# SimCLR's (arXiv 2002.05709): 12,811 and 128,116 images.
LISTS = {
    "simclr-1": PublicList(
        f"{_SIMCLR}/1percent.txt", "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17"
    ),
    "simclr-10": PublicList(
        f"{_SIMCLR}/10percent.txt", "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091"
    ),
}
# The DHO authors' own draws, in percent: 13,000 and 128,286 images. Results on these and on SimCLR's do not compare.
DRAWS = {"authors-1": 1, "authors-10": 10}
IMAGENET_IMAGES = 1_281_167


def build_labeled_dataset(cfg: Any) -> Any:
    """Build the dataset; where cfg.DATASET.LABELS names a list or a draw, only its images stay in train_x.

    Raises:
        UsageError: a list and a number of shots; no such list; a list or another run's split.json that does not fit
            the dataset; a draw and a part of the classes.
    """
    wanted = cfg.DATASET.LABELS
    if wanted and cfg.DATASET.NUM_SHOTS > 0:
        raise UsageError(f"labels by list ({wanted}) and {cfg.DATASET.NUM_SHOTS} shots a class: choose one")
    if wanted in DRAWS and cfg.DATASET.SUBSAMPLE_CLASSES != "all":
        raise UsageError(f"{wanted} is drawn over all classes: leave DATASET.SUBSAMPLE_CLASSES at all")
    dataset = build_dataset(cfg)
    if wanted in DRAWS:
        everything = dataset.train_x
        dataset._train_x = drawn(everything, DRAWS[wanted])
        print(f"{wanted}: {len(dataset.train_x):,} of {len(everything):,} training images are labelled")
        if cfg.DATASET.NAME == "ImageNet" and len(everything) != IMAGENET_IMAGES:
            print(f"ImageNet has {IMAGENET_IMAGES:,} training images: with others this is not the authors' subset")
    elif wanted.endswith(".json") and Path(wanted).is_file():
        dataset._train_x = recorded(dataset.train_x, Path(wanted), cfg.DATASET.ROOT)
    elif wanted:
        folder = Path(getattr(dataset, "dataset_dir", cfg.DATASET.ROOT))
        dataset._train_x = listed(dataset.train_x, list_file(wanted, folder))
    return dataset


def list_file(wanted: str, folder: Path) -> Path:
    """The local file of a list; a public one is fetched once and checked.

    It is kept in `folder`, or, where nothing can be written there, in torch.hub's.

    Raises:
        UsageError: neither a public list nor a file; it cannot be fetched, or is not the list of that name.
    """
    if wanted not in LISTS:
        if Path(wanted).is_file():
            return Path(wanted)
        known = [*LISTS, *DRAWS]
        raise UsageError(f"no list {wanted!r}: expected a file or one of {known}.{did_you_mean(wanted, known)}")
    source = LISTS[wanted]
    places = [home / "imagenet_subsets" / source.url.rpartition("/")[2] for home in (folder, Path(torch.hub.get_dir()))]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        path = places[0] if _writable(places[0].parent) else places[1]
        print(f"Fetching {source.url} to {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source.url, str(path), hash_prefix=source.sha256, progress=False)
        except (URLError, RuntimeError, OSError) as error:
            raise UsageError(f"cannot fetch {source.url} ({error}): put that file at {path}") from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise UsageError(f"{path} is not {source.url}: delete it")
    return path


def _writable(folder: Path) -> bool:
    above = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return os.access(above, os.W_OK)


def drawn(items: Sequence[Datum], percent: float) -> list[Datum]:
    """The items that the DHO authors' sampler labels (balanced.balanced_draw), in the items' order."""
    by_class: dict[int, list[Datum]] = defaultdict(list)
    for item in sorted(items, key=lambda item: (item.label, Path(item.impath).name)):
        by_class[item.label].append(item)
    positions = balanced_draw([len(group) for group in by_class.values()], percent)
    chosen = {group[i].impath for group, taken in zip(by_class.values(), positions, strict=True) for i in taken}
    return [item for item in items if item.impath in chosen]


def listed(items: Sequence[Datum], file: Path) -> list[Datum]:
    """The items whose file a line names, by file name or by the end of the path, in the items' order.

    Raises:
        UsageError: a line that fits no item or several; a class of which the list names no image.
    """
    by_name = defaultdict(list)
    for item in items:
        by_name[Path(item.impath).name].append(item)
    chosen = set()
    for number, line in enumerate(read_lines(file), start=1):
        entry = line.strip()
        if not entry:
            continue
        parts = Path(entry).parts
        fits = [item for item in by_name[parts[-1]] if Path(item.impath).parts[-len(parts) :] == parts]
        if len(fits) != 1:
            what = f"{len(fits)} training images have" if fits else "no training image has"
            raise UsageError(f"{file}, line {number}: {what} the name {entry!r}; expected exactly one")
        chosen.add(fits[0].impath)
    kept = [item for item in items if item.impath in chosen]
    names = {item.label: item.classname for item in items}
    without = sorted(set(names) - {item.label for item in kept})
    if without:
        raise UsageError(f"{file} names no image of {len(without)} classes, first {names[without[0]]!r}")
    return kept
