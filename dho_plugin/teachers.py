"""Frozen teachers. One protocol: images in, class logits out; a zero-shot CLIP model, or a finished run of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UsageError
from .heads import build_head
from .manifest import labeled_part, prompts_digest, read
from .runs import is_run, load_run
from .towers import VLM
from .vlm import find_vlm


class Teacher(nn.Module):
    """What a student learns from.

    Attributes:
        size: resolution in pixels of the views it wants. width: of its image features.
    """

    size: int
    width: int

    def features(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, size, size) -> image features (N, width), float32."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, size, size) -> logits (N, C), float32."""
        raise NotImplementedError

    def directions(self) -> Tensor:
        """Unit-length directions of the classes among its features (C, width).

        Raises:
            UsageError: its classifier has none.
        """
        raise NotImplementedError


class ZeroShotTeacher(Teacher):
    """A CLIP model that classifies by the texts of the class names: logits = cos(f_X(x), f_T(t_c)) / zeta (Eq. 1).

    Args:
        vlm: the teacher. names: C class names. templates: prompts with one "{}" for the name.
        zeta: softmax temperature of the teacher, 0.01 for CLIP.
    """

    def __init__(self, vlm: VLM, names: Sequence[str], templates: Sequence[str], *, zeta: float) -> None:
        super().__init__()
        self.vlm = vlm
        self.size, self.width = vlm.image.size, vlm.width
        self.texts = vlm.class_embeddings(names, templates)
        self.head = build_head("cosine", vlm.width, len(names), class_embeddings=self.texts, scale=1 / zeta)
        self.prompts_sha256 = prompts_digest(templates, names)
        self.requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        return self.vlm.features(images)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))

    def classify(self, features: Tensor) -> Tensor:
        """Image features (N, width) -> logits (N, C), in float32 whatever the precision."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)

    def directions(self) -> Tensor:
        return self.texts


class RunTeacher(Teacher):
    """A finished run of ours, Tip-Adapter or any trained model: logits as it answers, divided by nothing.

    Two heads answer with interpolated probabilities (Eq. 11); their logarithms are the logits.

    Args:
        trainer: the loaded run (runs.load_run), over the classes of the student.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.trainer = trainer
        self.model = trainer.model.requires_grad_(False)
        self.size, self.width = trainer.student.image.size, trainer.student.width

    def train(self, mode: bool = True) -> RunTeacher:
        """Stay in eval mode whatever is set."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        return self.trainer.backbone(self.trainer.student.normalize(images)).float()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.trainer.class_logits(self.trainer.student.normalize(images))

    def directions(self) -> Tensor:
        return self.trainer.class_directions()


def find_teacher(name: str) -> None:
    """Find out what a teacher's name means without loading anything: a run's output folder, or a CLIP model.

    Raises:
        UsageError: neither; as vlm.find_vlm.
    """
    if not is_run(name):
        if Path(name).expanduser().is_dir():
            raise UsageError(f"{name} is a folder but not the output folder of a finished training run")
        find_vlm(name)


def load_run_teacher(cfg: Any, labeled: Sequence[Any]) -> RunTeacher:
    """The run that cfg.TRAINER.DHO.TEACHER.NAME names, over the classes of the student's dataset.

    Args:
        cfg: the student's configuration. labeled: the student's labelled images (Dassl items).

    Raises:
        UsageError: the run learned from other labels than the student has (unless OTHER_LABELS allows it); classes
            that the run does not know.
    """
    folder, wanted = Path(cfg.TRAINER.DHO.TEACHER.NAME).expanduser(), labeled_part(labeled, cfg.DATASET.ROOT)
    if not cfg.TRAINER.DHO.TEACHER.OTHER_LABELS:
        there = read(folder).get("labeled")
        if there != wanted:
            seen = f"{there['images']} labelled images of hash {there['sha256'][:12]}" if there else "unknown images"
            raise UsageError(
                f"the teacher {folder} learned from {seen}, the student has {wanted['images']} of hash "
                f"{wanted['sha256'][:12]}: train the teacher on the same shots and seed, or allow it by name "
                "(TRAINER.DHO.TEACHER.OTHER_LABELS True)"
            )
    changes = {f"DATASET.{key}": value for key, value in cfg.DATASET.items()}
    return RunTeacher(load_run(folder, {**changes, "USE_CUDA": cfg.USE_CUDA, "VERBOSE": False}))
