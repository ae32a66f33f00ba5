"""A toy dataset of tiny PNGs and two toy trainers, defined on whichever engine is passed in."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

Api = ModuleType | SimpleNamespace

CLASSES = ("ash", "birch", "cedar")
# Images per class; "ash" has more of them than the others.
SIZES = {"train_x": (5, 3, 2), "train_u": (8, 8, 7), "val": (2, 2, 2), "test": (3, 2, 1)}


def write_images(root: Path, sizes: dict[str, tuple[int, ...]] = SIZES) -> Path:
    """Write `<root>/<split>/<class>/<i>.png`, 12 x 10 pixels, all different."""
    rng = random.Random(0)
    for split, counts in sizes.items():
        for name, count in zip(CLASSES, counts, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = bytes(rng.randrange(256) for _ in range(12 * 10 * 3))
                Image.frombytes("RGB", (12, 10), pixels).save(folder / f"{i}.png")
    return root


def read_split(api: Api, root: Path, split: str) -> list[Any]:
    """Return the Datums of one split; the domain is the parity of the class."""
    return [
        api.Datum(impath=str(path), label=label, domain=label % 2, classname=name)
        for label, name in enumerate(CLASSES)
        for path in sorted((root / split / name).glob("*.png"))
    ]


def config(api: Api, root: Path, output: Path, *options: Any) -> Any:
    """Return a frozen configuration for the toys; `options` are alternating keys and values."""
    cfg = api.get_cfg_default()
    common: list[Any] = ["DATASET.NAME", "HostToy", "DATASET.ROOT", str(root), "OUTPUT_DIR", str(output)]
    common += ["USE_CUDA", False, "TRAINER.NAME", "ToyX", "DATALOADER.NUM_WORKERS", 0]
    common += ["INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ("random_flip", "normalize")]
    common += ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.TEST.BATCH_SIZE", 4]
    common += ["OPTIM.NAME", "sgd", "OPTIM.LR", 0.1, "OPTIM.MAX_EPOCH", 2, "OPTIM.LR_SCHEDULER", "cosine"]
    cfg.merge_from_list([*common, *options])
    cfg.freeze()
    return cfg


class Recorder:
    """Mixed into a trainer: writes each hook's name, and the images and learning rate of each step, to lists."""

    def __init__(self, cfg: Any) -> None:
        self.hooks: list[str] = []
        self.steps: list[tuple[list[int], ...]] = []
        self.rates: list[float] = []
        super().__init__(cfg)

    def _build(self, api: Api) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, self.num_classes))
        self.optim = api.build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = api.build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("toy", self.model, self.optim, self.sched)

    def _step(self, *batches: Any) -> dict[str, float]:
        self.hooks.append("forward_backward")
        assert self.model.training
        self.steps.append(tuple(batch["index"].tolist() for batch in batches))
        self.rates.append(self.get_current_lr())
        images, labels, _ = self.parse_batch_train(*batches)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": logits.argmax(1).eq(labels).float().mean().item()}

    def before_train(self) -> None:
        self.hooks.append("before_train")
        super().before_train()

    def before_epoch(self) -> None:
        self.hooks.append("before_epoch")
        super().before_epoch()

    def run_epoch(self) -> None:
        self.hooks.append("run_epoch")
        super().run_epoch()

    def after_epoch(self) -> None:
        self.hooks.append("after_epoch")
        super().after_epoch()

    def after_train(self) -> None:
        self.hooks.append("after_train")
        super().after_train()

    def test(self, split: str | None = None) -> Any:
        self.hooks.append("test")
        return super().test(split)


def define(api: Api) -> None:
    """Register HostToy, ToyX and ToyXU with `api`."""

    @api.DATASET_REGISTRY.register(force=True)
    class HostToy(api.DatasetBase):
        def __init__(self, cfg: Any) -> None:
            root = Path(cfg.DATASET.ROOT)
            splits = {split: read_split(api, root, split) for split in SIZES}
            super().__init__(**{split: images or None for split, images in splits.items()})

    @api.TRAINER_REGISTRY.register(force=True)
    class ToyX(Recorder, api.TrainerX):
        def build_model(self) -> None:
            self._build(api)

        def forward_backward(self, batch: Any) -> dict[str, float]:
            return self._step(batch)

    @api.TRAINER_REGISTRY.register(force=True)
    class ToyXU(Recorder, api.TrainerXU):
        def build_model(self) -> None:
            self._build(api)

        def forward_backward(self, batch_x: Any, batch_u: Any) -> dict[str, float]:
            return self._step(batch_x, batch_u)


def learning_rates(api: Api, cfg: Any, epochs: int) -> list[float]:
    """Return the learning rate of each epoch under the OPTIM section of `cfg`."""
    optim = api.build_optimizer([nn.Parameter(torch.zeros(1))], cfg.OPTIM)
    sched = api.build_lr_scheduler(optim, cfg.OPTIM)
    rates = []
    for _ in range(epochs):
        rates.append(optim.param_groups[0]["lr"])
        optim.step()
        sched.step()
    return rates
