"""Batches of images: the dataset wrapper, and the loaders of all splits (DataManager)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.transforms as T
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from ..errors import UsageError, did_you_mean
from ..views import read_image
from .dataset import Datum, build_dataset
from .transforms import build_transform, interpolation, normalize

_SAMPLERS: dict[str, Callable[[Any], Sampler[int]]] = {
    "RandomSampler": RandomSampler,
    "SequentialSampler": SequentialSampler,
}
_DASSL_ONLY_SAMPLERS = ("RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")


class DatasetWrapper(Dataset[dict[str, Any]]):
    """Reads and transforms one image per index.

    Args:
        cfg: configuration; INPUT and DATALOADER are read.
        data_source: images.
        transform: one transform, or several: the views are then called img, img2, img3, ...
        is_train: apply each transform DATALOADER.K_TRANSFORMS times (a list of views) instead of once.
    """

    def __init__(self, cfg: CfgNode, data_source: Sequence[Datum], transform: Any = None, is_train: bool = False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm: int = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0: bool = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise UsageError(f"DATALOADER.K_TRANSFORMS={self.k_tfm} needs a transform, but INPUT.NO_TRANSFORM is set")
        plain = [T.Resize(cfg.INPUT.SIZE, interpolation=interpolation(cfg.INPUT)), T.ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            plain.append(normalize(cfg.INPUT))
        self.to_tensor = T.Compose(plain)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return img (3, H, W), label, domain, impath and index; img0 (no augmentation) if RETURN_IMG0."""
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        image = read_image(item.impath)
        if self.transform is None:
            output["img"] = image
        else:
            transforms = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
            for position, transform in enumerate(transforms, start=1):
                views = [transform(image) for _ in range(self.k_tfm)]
                output["img" if position == 1 else f"img{position}"] = views[0] if self.k_tfm == 1 else views
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output


def build_sampler(name: str, data_source: Sequence[Datum]) -> Sampler[int]:
    """Return the sampler called `name`; UsageError for those of domain adaptation and for unknown names."""
    if name in _SAMPLERS:
        return _SAMPLERS[name](data_source)
    if name in _DASSL_ONLY_SAMPLERS:
        raise UsageError(
            f"sampler {name!r} belongs to Dassl's domain methods, which the embedded engine leaves out; run with a "
            f"Dassl checkout on PYTHONPATH, or use one of {list(_SAMPLERS)}"
        )
    raise UsageError(f"unknown sampler {name!r}: expected one of {list(_SAMPLERS)}.{did_you_mean(name, _SAMPLERS)}")


def build_data_loader(
    cfg: CfgNode,
    loader_cfg: CfgNode,
    data_source: Sequence[Datum],
    transform: Any,
    is_train: bool,
    dataset_wrapper: Callable[..., Any] | None = None,
) -> DataLoader[Any]:
    """Build the loader of one split; a training loader drops the last, incomplete batch unless it is the only one.

    Args:
        cfg: configuration.
        loader_cfg: DATALOADER.TRAIN_X, .TRAIN_U or .TEST.
        data_source: images.
        transform: see DatasetWrapper.
        is_train: whether the split is used for training.
        dataset_wrapper: replaces DatasetWrapper.
    """
    wrap = DatasetWrapper if dataset_wrapper is None else dataset_wrapper
    return DataLoader(
        wrap(cfg, data_source, transform=transform, is_train=is_train),
        batch_size=loader_cfg.BATCH_SIZE,
        sampler=build_sampler(loader_cfg.SAMPLER, data_source),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= loader_cfg.BATCH_SIZE,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The configured dataset and its loaders.

    Attributes:
        dataset: what DATASET.NAME builds.
        train_loader_x, test_loader: labelled training and test batches.
        train_loader_u, val_loader: None where the dataset has no such images.

    Args:
        cfg: configuration.
        custom_tfm_train, custom_tfm_test: replace the configured transforms.
        dataset_wrapper: replaces DatasetWrapper.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Any = None,
        custom_tfm_test: Any = None,
        dataset_wrapper: Callable[..., Any] | None = None,
    ) -> None:
        dataset = build_dataset(cfg)
        if not dataset.test:
            raise UsageError(f"dataset {cfg.DATASET.NAME!r} has no test images")
        train = build_transform(cfg, is_train=True) if custom_tfm_train is None else custom_tfm_train
        test = build_transform(cfg, is_train=False) if custom_tfm_test is None else custom_tfm_test
        loaders = cfg.DATALOADER
        loader_u = loaders.TRAIN_X if loaders.TRAIN_U.SAME_AS_X else loaders.TRAIN_U

        def loader(loader_cfg: CfgNode, images: Sequence[Datum], is_train: bool) -> DataLoader[Any]:
            return build_data_loader(cfg, loader_cfg, images, train if is_train else test, is_train, dataset_wrapper)

        self.dataset = dataset
        self.train_loader_x = loader(loaders.TRAIN_X, dataset.train_x, True)
        self.train_loader_u = loader(loader_u, dataset.train_u, True) if dataset.train_u else None
        self.val_loader = loader(loaders.TEST, dataset.val, False) if dataset.val else None
        self.test_loader = loader(loaders.TEST, dataset.test, False)
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.dataset.num_classes

    @property
    def num_source_domains(self) -> int:
        """Number of entries in DATASET.SOURCE_DOMAINS."""
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class index -> class name."""
        return self.dataset.lab2cname

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print the name of the dataset and the size of each split."""
        rows = [
            ("Dataset", cfg.DATASET.NAME),
            ("Source", cfg.DATASET.SOURCE_DOMAINS),
            ("Target", cfg.DATASET.TARGET_DOMAINS),
            ("# classes", f"{self.num_classes:,}"),
        ]
        for split in ("train_x", "train_u", "val", "test"):
            images = getattr(self.dataset, split)
            rows.append((f"# {split}", f"{len(images):,}" if images else ""))
        lines = [f"{key:<9}  {value}" for key, value in rows if value]
        rule = "-" * max(map(len, lines))
        print("\n".join([rule, *lines, rule]))
