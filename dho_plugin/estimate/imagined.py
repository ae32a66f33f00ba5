"""A published dataset where its images are not: as many classes and images as it has, and no file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..datasets.catalogue import PUBLISHED
from ..datasets.imagenet import class_range, listed_item, packaged_names
from ..datasets.lists import read_lines
from ..errors import UsageError, did_you_mean
from ..host import DATASET_REGISTRY, DatasetBase
from ..labels import DRAWS, LISTS
from ..split_record import read_labeled

# Images in the public lists and draws of labels.py, which are ImageNet's.
LABELED = {"simclr-1": 12_811, "simclr-10": 128_116, "authors-1": 13_000, "authors-10": 128_286}


def is_there(cfg: Any) -> bool:
    """Whether the images of a dataset with published numbers lie below DATASET.ROOT."""
    kind = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not hasattr(kind, "place"):  # a host's own
        return True
    place = kind.place(Path(cfg.DATASET.ROOT).expanduser().absolute())
    return place.found and place.images.is_dir()


def can_imagine(name: str) -> bool:
    """Whether the numbers of a registered dataset are published and it has images to train on."""
    return name in PUBLISHED and PUBLISHED[name][1] > 0


@contextmanager
def imagined(cfg: Any) -> Iterator[Any]:
    """Within this context the dataset of cfg is one without files; gives the configuration to build a trainer from.

    Its images are spread evenly over the classes; ImageNet's names serve for any dataset, as many as it has classes.

    Raises:
        UsageError: an unknown list of labels.
    """
    name, changed = cfg.DATASET.NAME, cfg.clone()
    known = DATASET_REGISTRY.get(name)
    changed.defrost()
    labeled = _listed_images(cfg.DATASET.LABELS) if cfg.DATASET.LABELS else 0
    changed.DATASET.LABELS = ""
    changed.DATASET.NUM_SHOTS = 1 if labeled else cfg.DATASET.NUM_SHOTS
    changed.TRAINER.DHO.TRANSDUCTIVE = True  # there is nothing to look for copies in
    changed.freeze()

    def build(self: Any, asked: Any) -> None:
        classes, train, _, test = PUBLISHED[name]
        kept = class_range(classes, asked.DATASET.SUBSAMPLE_CLASSES)
        shots = asked.DATASET.NUM_SHOTS
        wanted = train if shots < 1 else labeled or shots * classes
        names = list(packaged_names().items())[:classes]
        self.class_ids = [names[label][0] for label in kept]
        sets = [
            [
                listed_item(
                    f"{self.class_ids[label - kept.start]}/{split}{number}", label - kept.start, names[label][1]
                )
                for label in kept
                for number in range(min(_share(wanted_of, label, classes), _share(of_all, label, classes)))
            ]
            for split, wanted_of, of_all in (("", wanted, train), ("test", test, test))
        ]
        DatasetBase.__init__(self, train_x=sets[0], test=sets[1])

    DATASET_REGISTRY.register(type(name, (DatasetBase,), {"__init__": build}), force=True)
    try:
        yield changed
    finally:
        DATASET_REGISTRY.register(known, force=True)


def _share(total: int, label: int, classes: int) -> int:
    whole, rest = divmod(total, classes)
    return whole + (label < rest)


def _listed_images(labels: str) -> int:
    """How many images DATASET.LABELS names."""
    if labels in LABELED:
        return LABELED[labels]
    path = Path(labels)
    if not path.is_file():
        known = [*LISTS, *DRAWS]
        raise UsageError(f"no list {labels!r}: expected a file or one of {known}.{did_you_mean(labels, known)}")
    if path.suffix == ".json":
        return len(read_labeled(path)[0])
    return sum(bool(line.strip()) for line in read_lines(path))
