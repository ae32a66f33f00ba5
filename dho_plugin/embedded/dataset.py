"""Images with labels: one image (Datum), the splits of a dataset (DatasetBase), and reading them from disk."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..errors import UsageError
from .registry import DATASET_REGISTRY, build


class NoSuchFile(UsageError, FileNotFoundError):
    """An image that is not there, or is no file."""


class Datum:
    """One labelled image.

    Args:
        impath: image file.
        label: class index.
        domain: domain index.
        classname: class name.

    Raises:
        FileNotFoundError: `impath` is not a file.
    """

    # The attribute names are part of CoOp's few-shot cache files, which are pickles of these objects.
    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
        if not os.path.isfile(impath):
            raise NoSuchFile(f"no image file {impath!r}; check DATASET.ROOT and the dataset's folder layout")
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        """Image file."""
        return self._impath

    @property
    def label(self) -> int:
        """Class index."""
        return self._label

    @property
    def domain(self) -> int:
        """Domain index."""
        return self._domain

    @property
    def classname(self) -> str:
        """Class name."""
        return self._classname


class DatasetBase:
    """The splits of a dataset; the classes are those of `train_x`.

    Args:
        train_x: labelled training images.
        train_u: unlabelled training images, or None.
        val: validation images, or None.
        test: test images.
    """

    dataset_dir: str = ""
    domains: list[str] = []  # noqa: RUF012 - subclasses assign their own list

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        if not train_x:
            raise UsageError(f"{type(self).__name__}: train_x is empty, so there are no classes")
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> list[Datum]:
        """Labelled training images."""
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        """Unlabelled training images."""
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        """Validation images."""
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        """Test images."""
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class index -> class name."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in order of class index."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum]) -> int:
        """Highest class index plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return {class index: name} and the names in order of index."""
        mapping = {item.label: item.classname for item in data_source}
        return mapping, [mapping[label] for label in sorted(mapping)]

    def generate_fewshot_dataset(self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False) -> Any:
        """Draw `num_shots` images of each class from each source, with Python's `random`.

        Args:
            data_sources: lists of images.
            num_shots: images per class; below 1 returns the sources as they are.
            repeat: draw with replacement from a class that has fewer images (otherwise all of them are taken).

        Returns:
            One list for one source; otherwise a sequence of lists, one per source.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        drawn = [self._draw(source, num_shots, repeat) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def _draw(self, source: list[Datum], num_shots: int, repeat: bool) -> list[Datum]:
        # One call to `random` per class, classes in order of appearance: published few-shot splits depend on it.
        shots: list[Datum] = []
        for items in self.split_dataset_by_label(source).values():
            if len(items) >= num_shots:
                shots += random.sample(items, num_shots)
            else:
                shots += random.choices(items, k=num_shots) if repeat else items
        return shots

    def split_dataset_by_label(self, data_source: list[Datum]) -> dict[int, list[Datum]]:
        """Group images by class index, in order of appearance."""
        groups: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: list[Datum]) -> dict[int, list[Datum]]:
        """Group images by domain index, in order of appearance."""
        groups: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups


def build_dataset(cfg: CfgNode) -> Any:
    """Build the dataset named by DATASET.NAME."""
    return build(DATASET_REGISTRY, cfg.DATASET.NAME, cfg)


def listdir_nohidden(path: str | Path, sort: bool = False) -> list[str]:
    """Names in a folder that do not start with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def mkdir_if_missing(dirname: str | Path) -> None:
    """Create a folder and its parents."""
    os.makedirs(dirname, exist_ok=True)
