"""The rows of `python -m dho_plugin benchmark` on whole steps: our trainers with a warm store, against the peers' way.

The peers' way is the same trainer without a store: teacher, frozen reference and image tower look at each view in each
step, and all 77 tokens of every prompt run. Learning rates are 0, so that each repetition is the same step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..cli import build_config, parser
from ..distributed import main_first
from ..estimate.counting import IMAGE, REST, TEACHER, TEXT, by_part
from ..host import build_trainer
from ..prompts import PromptedClassifier
from ..trainers.section import teacher_views
from ..vlm import imagenet_classnames
from .row import Row
from .text import WholeTowers

IMAGES = 4  # different ones; each class shows one of them, so that few views need the teacher
PROBE = "step of LinearProbeDHO, all stored"
EVALUATED = 4  # images in a batch of the evaluation
PEERS_BATCH = 2  # of a linear probe, whose peers' time is taken per image


class Scale(NamedTuple):
    """student, teacher: architectures. classes, batch: of a step of prompt learning. probe: both, of a linear probe."""

    student: str
    teacher: str
    classes: int
    batch: int
    probe: tuple[int, int]


FULL = Scale("ViT-B/16", "ViT-L/14@336px", classes=20, batch=2, probe=(1000, 512))
ON_GPU = Scale("ViT-B/16", "ViT-L/14@336px", classes=1000, batch=32, probe=(1000, 512))
QUICK = Scale("ViT-S-32-alt", "ViT-S-16-alt", classes=4, batch=1, probe=(20, 64))


def write_images(folder: Path, classes: int) -> Path:
    """One JPEG of 500 x 375 pixels for each class, in the layout of --data, under ImageNet's first class names."""
    rng = np.random.default_rng(0)
    for index, name in zip(range(classes), imagenet_classnames(), strict=False):
        (folder / "train" / f"{index:04}").mkdir(parents=True)
        with (folder / "classes.txt").open("a") as file:
            file.write(f"{index:04} {name}\n")
        path = folder / "train" / f"{index:04}" / "image.jpg"
        if index >= IMAGES:
            path.write_bytes((folder / "train" / f"{index % IMAGES:04}" / "image.jpg").read_bytes())
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        coarse.save(path, quality=92)
    return folder


class Bench:
    """Trainers on generated images below a folder.

    Args:
        folder: for images, store and output. scale: see Scale. cuda: whether to use the GPU.
    """

    def __init__(self, folder: Path, scale: Scale, *, cuda: bool) -> None:
        self.folder, self.scale, self.cuda = folder, scale, cuda
        self.made = 0

    def trainer(self, name: str, *, classes: int, batch: int, stored: bool, options: Sequence[str] = ()) -> Any:
        """A trainer ready for its first step: the peers', or ours with a store. options: see ready."""
        store = ("STORE.DIR", str(self.folder / "store")) if stored else ()
        trainer = self.ready(name, classes=classes, batch=batch, options=(*store, *options))
        return trainer if stored else as_peers(trainer)

    def ready(self, name: str, *, classes: int, batch: int, options: Sequence[str] = ()) -> Any:
        """A trainer ready for its first step; what it prints goes to stderr. options: further KEY VALUE pairs."""
        images, self.made = self.folder / f"images{classes}", self.made + 1
        with main_first():
            if not images.is_dir():
                write_images(images, classes)
        words = [
            *("--trainer", name, "--data", str(images), "--labels-only", "--transforms", "normalize"),
            *("--backbone", f"{self.scale.student}:random", "--teacher", f"{self.scale.teacher}:random"),
            *("--output-dir", str(self.folder / f"run{self.made}"), "DATALOADER.TRAIN_X.BATCH_SIZE", str(batch)),
            *("DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "2", "USE_CUDA", str(self.cuda)),
            *("TRAINER.DHO.STEPS_PER_EPOCH", "2", "STORE.VIEWS", "1", *options),
        ]
        with redirect_stdout(sys.stderr):
            cfg = build_config(parser().parse_args(words)).clone()
            cfg.defrost()
            for method in cfg.TRAINER.values():
                if isinstance(method, dict) and "PREC" in method:
                    method["PREC"] = "fp32"
            trainer = build_trainer(cfg)
            trainer.before_train()
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 2
        trainer.set_model_mode("train")
        for optimizer in trainer._optims.values():
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = 0.0
        return trainer

    def pair(self, name: str, classes: int, batch: int) -> tuple[Any, Any]:
        """The peers' trainer and ours."""
        return tuple(self.trainer(name, classes=classes, batch=batch, stored=stored) for stored in (False, True))


def as_peers(trainer: Any) -> Any:
    """The trainer, whose towers compute all tokens of all layers."""
    whole = WholeTowers(trainer.vlm)
    trainer.backbone.vlm = whole
    if isinstance(trainer.ce_head, PromptedClassifier):
        trainer.ce_head.vlm = whole
    return trainer


def rows(bench: Bench, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The cases of the table whose name is wanted; each loads its models only when it is its turn."""
    classes, batch = bench.scale.classes, bench.scale.batch
    for trainer, size, least in (("CoOpDHO", batch, 45), ("VPTDHO", 1, 5.8)):
        name = f"step of {trainer}, all that is frozen stored, C = {classes}, B = {size}"
        if wanted(name):
            yield _row(name, map(_step, bench.pair(trainer, classes, size)), least)
    name = "image side of a step of PromptSRCDHO, B = 1"
    if wanted(name):
        yield _row(name, map(_image_side, bench.pair("PromptSRCDHO", classes, 1)), 6.4)
    if wanted(PROBE):
        yield from _probe(bench)
    name = f"evaluation of CoOp, {EVALUATED} images, C = {10 * EVALUATED} (as 100 and 1000)"
    if wanted(name):
        yield _evaluation(bench, name)


def _row(name: str, ways: Iterable[Callable[[], list[Tensor]]], wanted: float) -> Row:
    peers, ours = ways
    return Row(name, peers, ours, wanted)


def compiled_rows(bench: Bench) -> Iterator[Row]:
    """What torch.compile does to the step that runs an image tower forward and back; its first call takes minutes."""
    classes, options = bench.scale.classes, ((), ("MODEL.COMPILE", "inductor"))
    plain, compiled = (
        _step(bench.trainer("VPTDHO", classes=classes, batch=bench.scale.batch, stored=True, options=option))
        for option in options
    )
    yield Row(f"step of VPTDHO, teacher stored, B = {bench.scale.batch}: as it is over compiled", plain, compiled, None)


def where_time_goes(bench: Bench) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a step of CoOpDHO by part, the peers' way and ours; the second of two steps."""
    found = []
    for trainer in bench.pair("CoOpDHO", bench.scale.classes, bench.scale.batch):
        for _ in range(2):
            batch = trainer.train_loader_x.batches[0]
            forward, backward, _ = by_part(trainer, batch, partial(_nanoseconds, trainer.device))
        parts = {
            "teacher": forward[TEACHER],
            "student's image tower": forward[IMAGE] + backward[IMAGE],
            "text tower, forward": forward[TEXT],
            "text tower, backward": backward[TEXT],
            "heads, losses and the rest": forward[REST] + backward[REST],
        }
        found.append({name: value / 1e9 for name, value in parts.items()})
    return found[0], found[1]


def _nanoseconds(device: torch.device) -> int:
    if device.type != "cuda":
        return time.process_time_ns()
    torch.cuda.synchronize(device)
    return time.perf_counter_ns()


def gradients(trainer: Any) -> list[Tensor]:
    """Of the last step, by every parameter that is trained."""
    parts = trainer.learned().values()
    return [p.grad for part in parts for p in part.parameters() if p.grad is not None]


def _step(trainer: Any) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        loss = trainer.forward_backward(trainer.train_loader_x.batches[0])["loss"]
        return [loss, *gradients(trainer)]

    return run


def _image_side(trainer: Any) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        batch = trainer.train_loader_x.batches[0]
        features = trainer.features(batch)
        weights = torch.linspace(-1, 1, features.numel(), device=features.device).view_as(features)
        gradients = torch.autograd.grad((features * weights).sum(), list(trainer.visual.parameters()))
        seen = trainer.teacher.features(teacher_views(batch, trainer.device))
        return [features.detach(), trainer.frozen_features(batch), seen, *gradients]

    return run


def _probe(bench: Bench) -> Iterator[Row]:
    """A linear probe: against the peers' way, by their time for each image, and against bare tensors."""
    classes, size = bench.scale.probe
    live = bench.trainer("LinearProbeDHO", classes=classes, batch=PEERS_BATCH, stored=False)
    few = bench.trainer("LinearProbeDHO", classes=classes, batch=PEERS_BATCH, stored=True)
    yield Row(f"{PROBE}, B = {PEERS_BATCH}, C = {classes}", _step(live), _step(few), None)
    ours = bench.trainer("LinearProbeDHO", classes=classes, batch=size, stored=True)
    steps = _endless(ours)

    def step() -> list[Tensor]:
        return [ours.forward_backward(next(steps))["loss"], *gradients(ours)]

    yield Row(
        f"{PROBE}, B = {size}, the peers' from {PEERS_BATCH} images",
        _step(live),
        step,
        1000,
        scale=size / PEERS_BATCH,
        compared=False,
    )
    steps = _endless(ours)
    yield Row(f"{PROBE}, a bare loop over tensors", _bare_step(ours), step, 1 / 1.3)


def _endless(trainer: Any) -> Iterator[dict[str, Any]]:
    for epoch in count():
        trainer.train_loader_x.set_epoch(epoch % trainer.max_epoch)
        yield from trainer.train_loader_x


def _bare_step(trainer: Any) -> Callable[[], list[Tensor]]:
    """The least that a step of a linear probe can be: rows of tensors in memory, two heads, one loss, AdamW."""
    batches, dho = trainer.train_loader_x.batches, trainer.cfg.TRAINER.DHO
    number = torch.from_numpy(batches.labeled.numbers[0])
    images, teacher = trainer.stored(number), F.normalize(trainer.teacher.features(number), dim=-1)
    texts, labels = trainer.teacher.directions().to(trainer.device), batches.labels.to(trainer.device)
    starts = count(0, batches.batch_size)
    heads = nn.ModuleList([trainer.ce_head, trainer.kd_head])
    optimizer = torch.optim.AdamW(heads.parameters(), lr=0.0, fused=True)

    def run() -> list[Tensor]:
        rows = torch.from_numpy(batches.labeled.order.span(next(starts), batches.batch_size)[0]).to(trainer.device)
        features = images[rows]
        ce = F.cross_entropy(trainer.ce_head(features), labels[rows])
        soft = F.softmax(teacher[rows] @ texts.t() / (dho.ZETA * dho.ETA), dim=-1)
        kd = F.kl_div(F.log_softmax(trainer.kd_head(features) / dho.ETA, dim=-1), soft, reduction="batchmean")
        loss = dho.LAMBDA * ce + (1 - dho.LAMBDA) * dho.ETA**2 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [loss.detach(), *gradients(trainer)]

    return run


def _evaluation(bench: Bench, name: str) -> Row:
    """A batch of CoOp's evaluation, in the proportion of 100 images and 1000 classes."""
    classes = 10 * EVALUATED
    peers, ours = bench.pair("CoOp", classes, EVALUATED)
    images = peers.images(peers.train_loader_x.batches[0])

    def every_time() -> list[Tensor]:
        peers.ce_head.train(False)  # forget the text
        return [peers.model_inference(images)]

    for trainer in (peers, ours):
        trainer.set_model_mode("eval")
    with torch.no_grad():
        ours.model_inference(images[:1])  # encodes the text, once for all batches
    return Row(name, torch.no_grad()(every_time), torch.no_grad()(lambda: [ours.model_inference(images)]), 2.5)
