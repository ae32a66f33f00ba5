"""From the configuration to loaders: what the INPUT, DATALOADER and TRAINER.DHO sections mean for the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..classes import ClassList, class_list
from ..errors import UsageError, did_you_mean
from ..loaders import EpochLoader, Sizes, StepBatches, TestImages, ViewSource
from ..pool import unlabeled_paths
from ..predicting import printable
from ..readers import check_reader
from ..stopping import deaf
from ..views import INTERPOLATIONS, ViewPolicy
from .section import views_of_an_image

COUNTS = ("train_x", "train_u", "smaller_one")
_TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")


class DataManager:
    """The dataset and its evaluation loaders, under the attribute names of Dassl's DataManager.

    Args:
        cfg: configuration. dataset: a Dassl dataset. size: resolution of the student's view.
    """

    def __init__(self, cfg: Any, dataset: Any, *, size: int) -> None:
        self.cfg, self.dataset, self.size = cfg, dataset, size
        self.num_classes, self.lab2cname = dataset.num_classes, dataset.lab2cname
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self.pin_memory = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if self.pin_memory else "cpu")
        check_reader(cfg.INPUT.READER, self.device)
        self.interpolation = INTERPOLATIONS[cfg.INPUT.INTERPOLATION]
        self.policy = view_policy(cfg.INPUT)
        self.val_loader = self.evaluation_loader(dataset.val) if dataset.val else None
        self.test_loader = self.evaluation_loader(dataset.test) if dataset.test else None
        if cfg.VERBOSE:
            _say_shared_names(class_list(dataset))

    def evaluation_loader(self, items: Sequence[Any]) -> DataLoader:
        """Centre views of Dassl items, in order."""
        return DataLoader(
            TestImages(items, size=self.size, interpolation=self.interpolation),
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            pin_memory=self.pin_memory,
            worker_init_fn=deaf,
            generator=torch.Generator(),
        )

    def training_loader(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        unlabeled: Sequence[str],
        *,
        teacher_size: int | None,
        seed: int,
    ) -> EpochLoader:
        """Batches of labelled and, where there are any, unlabelled views.

        Args:
            paths, labels: image files whose batches make the steps; label -1 where none is shown.
            unlabeled: image files used beside them without labels. teacher_size: resolution of the teacher's view,
                None for no teacher. seed: of order and views.
        """
        cfg, sizes = self.cfg, Sizes(self.size, teacher_size)
        labeled = self._source(paths, sizes, seed, stream=0)
        batch_size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        unlabeled_size = batch_size if cfg.DATALOADER.TRAIN_U.SAME_AS_X else cfg.DATALOADER.TRAIN_U.BATCH_SIZE
        source = self._source(unlabeled, sizes, seed, stream=1) if unlabeled else None
        batches = StepBatches(labeled, labels, batch_size, source, unlabeled_size)
        steps = cfg.TRAINER.DHO.STEPS_PER_EPOCH or self._passes(len(paths) // batch_size, unlabeled_size)
        hidden = sum(label < 0 for label in labels)
        print(
            f"{cfg.DATASET.NAME}: {self.num_classes:,} classes, {len(paths) - hidden:,} labelled, "
            f"{len(unlabeled) + hidden:,} unlabelled, {len(self.dataset.val or []):,} validation, "
            f"{len(self.dataset.test or []):,} test images; "
            f"{steps:,} steps an epoch; order and views from seed {seed}"
        )
        labeled_views, views = views_of_an_image(cfg)
        for kind, number in (("labelled", labeled_views), ("unlabelled", views if unlabeled else 0)):
            if number:
                print(f"STORE: views of each {kind} image: {number}, then these again; the paper's are always fresh")
        workers = min(cfg.DATALOADER.NUM_WORKERS, steps)  # started anew each epoch, which may be one step
        return EpochLoader(batches, steps=steps, workers=workers, pin_memory=self.pin_memory)

    def _passes(self, labeled_steps: int, unlabeled_size: int) -> int:
        """Steps of an epoch by TRAIN.COUNT_ITER; a row without unlabelled images takes as many as its companions."""
        counts = {"train_x": labeled_steps}
        if self.cfg.TRAIN.COUNT_ITER != "train_x":
            kind = self.cfg.TRAINER.DHO.UNLABELED_POOL
            pool = unlabeled_paths(self.cfg, self.dataset.train_x, self.dataset.test, pool=kind)
            if len(pool) < unlabeled_size:
                print(f"{len(pool)} unlabelled images make no batch: an epoch is a pass over the labelled ones")
            else:
                counts["train_u"] = len(pool) // unlabeled_size
                counts["smaller_one"] = min(counts.values())
        return max(1, counts.get(self.cfg.TRAIN.COUNT_ITER, labeled_steps))

    def _source(self, paths: Sequence[str], sizes: Sizes, seed: int, *, stream: int) -> ViewSource:
        return ViewSource(
            paths,
            root=self.cfg.DATASET.ROOT,
            sizes=sizes,
            policy=self.policy,
            interpolation=self.interpolation,
            seed=seed,
            stream=stream,
            bad_images=self.cfg.INPUT.BAD_IMAGES,
            views=views_of_an_image(self.cfg)[stream],
            reader=self.cfg.INPUT.READER,
            device=self.device,
        )


def _say_shared_names(classes: ClassList) -> None:
    """Name the classes that no text can tell apart; they stay several, each known by its id."""
    ids: dict[str, list[str]] = {}
    for id_, name in zip(*classes, strict=True):
        ids.setdefault(name, []).append(id_)
    shared = [f"{name} ({', '.join(of_name)})" for name, of_name in ids.items() if len(of_name) > 1]
    if shared:
        more = "; ..." if len(shared) > 4 else ""
        print(
            f"{len(shared)} names stand for several classes, which their texts cannot tell apart: "
            f"{printable('; '.join(shared[:4]))}{more}"
        )


def view_policy(inputs: Any) -> ViewPolicy:
    """The INPUT section as a view policy.

    Raises:
        UsageError: a transform that is not a pure function of (seed, image, epoch) here.
    """
    odd = [name for name in inputs.TRANSFORMS if name not in _TRANSFORMS]
    if odd:
        raise UsageError(
            f"INPUT.TRANSFORMS {odd[0]!r}: these trainers know {_TRANSFORMS}, which teacher and student can share."
            f"{did_you_mean(odd[0], _TRANSFORMS)}"
        )
    return ViewPolicy(
        crop="random_resized_crop" in inputs.TRANSFORMS,
        flip="random_flip" in inputs.TRANSFORMS,
        scale=tuple(inputs.RRCROP_SCALE),
    )
