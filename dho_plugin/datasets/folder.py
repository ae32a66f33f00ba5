"""`--data DIR`: images of one's own, without a line of Python (see own_files.py for the layouts)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import extend_defaults
from ..errors import UsageError
from ..host import DatasetBase, Datum
from ..registration import register_dataset
from .own_checks import Entry, describe
from .own_files import read_entries, read_names, remarks

extend_defaults(
    "DATASET",
    {
        "CSV": "",  # the table, a file name below DATASET.ROOT; empty for class folders or labels.csv
        "CONTENT": "",  # set by train.py: a run does not go on from one on other images
    },
)


@register_dataset
class Folder(DatasetBase):
    """The folder DATASET.ROOT itself: labelled and unlabelled, validation and test images, all but the first optional.

    `train_u` holds all training images, the labelled ones too, so that what --shots leaves is used without its label;
    it is None where nothing is unlabelled. Its labels are -1.
    """

    validation = "own"  # a manifest's name for where they come from

    def __init__(self, cfg: Any) -> None:
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise UsageError("DATASET.SUBSAMPLE_CLASSES: images of one's own are taken whole, leave it at all")
        root = _root(cfg)
        self.dataset_dir = str(root)
        entries = _entries(cfg)
        self.class_ids = _class_ids(entries)
        names = read_names(root / "classes.txt", self.class_ids)
        labels = {class_id: label for label, class_id in enumerate(self.class_ids)}

        def data(chosen: Iterable[Entry]) -> list[Datum]:
            return [
                Datum(impath=entry.path, label=labels[entry.class_id], classname=names[entry.class_id])
                for entry in chosen
            ]

        train = [entry for entry in entries if entry.split == "train"]
        labeled = [entry for entry in train if entry.class_id]
        val, test = ([entry for entry in entries if entry.split == split] for split in ("val", "test"))
        for remark in remarks(root, cfg.DATASET.CSV, entries) if cfg.VERBOSE else ():
            print(remark)
        unlabeled = [Datum(impath=entry.path, label=-1) for entry in train] if len(labeled) < len(train) else None
        shots = self.generate_fewshot_dataset(data(labeled), num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=shots, train_u=unlabeled, val=data(val), test=data(test))

    @staticmethod
    def content(cfg: Any) -> str:
        """What tells these images from others: their numbers, and a digest of places, sizes, labels and class names.

        Raises:
            UsageError: as read_entries.
        """
        root = _root(cfg)
        entries = _entries(cfg)
        return describe(root, entries, read_names(root / "classes.txt", _class_ids(entries)))


def _entries(cfg: Any) -> list[Entry]:
    return read_entries(_root(cfg), cfg.DATASET.CSV, skip=cfg.INPUT.BAD_IMAGES == "skip")


def _root(cfg: Any) -> Path:
    return Path(cfg.DATASET.ROOT).expanduser().absolute()


def _class_ids(entries: Iterable[Entry]) -> list[str]:
    return sorted({entry.class_id for entry in entries if entry.class_id})
