"""Trainers with data: build, train, evaluate, save (SimpleTrainer); labelled (TrainerX) and unlabelled (TrainerXU)."""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from ..errors import UsageError
from .evaluation import build_evaluator
from .loading import DataManager
from .meters import MetricMeter
from .registry import TRAINER_REGISTRY, build
from .stepping import evaluation, steps
from .trainer_base import TrainerBase


def build_trainer(cfg: CfgNode) -> Any:
    """Build the trainer named by TRAINER.NAME."""
    return build(TRAINER_REGISTRY, cfg.TRAINER.NAME, cfg)


class SimpleTrainer(TrainerBase):
    """Builds data, model and evaluator from the configuration; saves, evaluates and resumes.

    Args:
        cfg: configuration.
    """

    model: nn.Module
    num_batches: int

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir: str = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -math.inf

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise if the configuration does not suit the trainer; for subclasses."""

    def build_data_loader(self) -> None:
        """Build the loaders; an override must set the same attributes, `dm` apart."""
        self.dm: Any = DataManager(self.cfg)
        self.train_loader_x: Any = self.dm.train_loader_x
        self.train_loader_u: Any = self.dm.train_loader_u
        self.val_loader: Any = self.dm.val_loader
        self.test_loader: Any = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """Build the model and register it, with its optimiser and scheduler; for subclasses."""
        raise NotImplementedError(
            f"{type(self).__name__} must override build_model(): Dassl's own backbones are not part of the embedded "
            "engine; run with a Dassl checkout on PYTHONPATH to use them"
        )

    def before_train(self) -> None:
        """Resume from RESUME or OUTPUT_DIR, and open TensorBoard."""
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.cfg.OUTPUT_DIR)
        self.init_writer(os.path.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def after_train(self) -> None:
        """Evaluate the last or, under TEST.FINAL_MODEL best_val, the best model."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def after_epoch(self) -> None:
        """Save: the best model under best_val, every TRAIN.CHECKPOINT_FREQ epochs, and after the last epoch."""
        done, frequency = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar")
        if done == self.max_epoch or (frequency > 0 and done % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def test(self, split: str | None = None) -> float:
        """Evaluate on "val" (where there is one) or "test"; the default is TEST.SPLIT. Return the first result."""
        return evaluation(self, split)

    def model_inference(self, input: Any) -> Any:
        """Return `self.model(input)`."""
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, W) and labels (N,) on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Return the learning rate of the first parameter group of the first model."""
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    def _train_on(self, entries: Iterable[tuple[Any, ...]]) -> None:
        """Call forward_backward on each of the `num_batches` entries, and log."""
        for _ in steps(self, entries, MetricMeter()):
            pass


class TrainerX(SimpleTrainer):
    """Trains on labelled batches: override `forward_backward(batch)`."""

    def run_epoch(self) -> None:
        """Train on each labelled batch once."""
        self.num_batches = len(self.train_loader_x)
        self._train_on((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return images, labels and domains on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)


class TrainerXU(SimpleTrainer):
    """Trains on pairs of labelled and unlabelled batches: override `forward_backward(batch_x, batch_u)`."""

    def run_epoch(self) -> None:
        """Train on as many pairs as TRAIN.COUNT_ITER says; a loader that runs out starts again."""
        if self.train_loader_u is None:
            raise UsageError(f"{type(self).__name__} needs unlabelled images, but the dataset's train_u is empty")
        sizes = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        sizes["smaller_one"] = min(sizes.values())
        count = self.cfg.TRAIN.COUNT_ITER
        if count not in sizes:
            raise UsageError(f"TRAIN.COUNT_ITER={count!r}: expected one of {list(sizes)}")
        self.num_batches = sizes[count]
        self._train_on(self._pairs())

    def _pairs(self) -> Iterator[tuple[Any, ...]]:
        loaders = (self.train_loader_x, self.train_loader_u)
        # Both iterators are made before the first batch is drawn: each takes its seed from torch's generator, and
        # the order of these draws decides the batches.
        streams = [iter(loader) for loader in loaders]
        for _ in range(self.num_batches):
            pair = []
            for position, loader in enumerate(loaders):
                try:
                    pair.append(next(streams[position]))
                except StopIteration:
                    streams[position] = iter(loader)
                    pair.append(next(streams[position]))
            yield tuple(pair)

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return labelled images, their labels and unlabelled images on the device."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device), batch_u["img"].to(self.device)
