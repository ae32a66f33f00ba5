"""Compact and CLIP students trained as a whole: `CE`, the control, and `StudentDHO` (Tables 1, 2 and 4)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from ..backbones import find_backbone, load_backbone
from ..classes import ClassHead
from ..errors import UsageError, check_choice
from ..heads import HEAD_KINDS, build_head
from ..registration import register_trainer
from ..towers import VLM, ImageEncoder
from ..vlm import find_vlm, load_vlm
from .base import MethodTrainer
from .dho import DHO

INITS = ("auto", "text", "kaiming")  # how the CE head starts; auto: from the student's texts where it has a text tower


def is_clip(name: str) -> bool:
    """Whether a student's name is that of a CLIP model, and not of a classifier.

    Raises:
        UsageError: it is neither.
    """
    try:
        find_vlm(name)
    except UsageError as no_clip:
        try:
            find_backbone(name)
        except UsageError as no_backbone:
            raise UsageError(f"no student {name!r}. As a classifier: {no_backbone} As a CLIP: {no_clip}") from None
        return False
    return True


@register_trainer
class CE(MethodTrainer):
    """Cross-entropy on the labelled images, every weight of the student trained."""

    section = "STUDENT"
    defaults: ClassVar = {"PREC": "amp", "HEAD": "linear", "INIT": "auto"}
    family = "Student"
    config = "ep20"
    few_images_config = "ep200"
    trains_student = True

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        own = cfg.TRAINER.STUDENT
        check_choice("TRAINER.STUDENT.HEAD", own.HEAD, HEAD_KINDS)
        check_choice("TRAINER.STUDENT.INIT", own.INIT, INITS)

    @staticmethod
    def find_student(name: str) -> None:
        """Raise UsageError for a student that cannot be had."""
        is_clip(name)

    def load_student(self) -> Any:
        name = self.cfg.MODEL.BACKBONE.NAME
        if is_clip(name):
            return load_vlm(name)
        with torch.random.fork_rng(devices=[]):  # the same random weights for every method of a seed
            torch.manual_seed(self.view_seed)
            return load_backbone(name, self.cfg.INPUT.SIZE[0])

    def before_train(self) -> None:
        alone = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE < 2 and not self.unlabeled_paths()
        normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.student.modules())
        if alone and normalised and not isinstance(self.student, VLM):  # whose statistics stay what they were
            raise UsageError(
                f"DATALOADER.TRAIN_X.BATCH_SIZE 1: {self.student.name} normalises over the batch, and one image has no "
                "deviation: take 2 or more"
            )
        super().before_train()

    def build_backbone(self) -> nn.Module:
        if not isinstance(self.student, VLM):
            return self.student
        self.student.model.visual.requires_grad_(True)
        return ImageEncoder(self.student)

    def build_ce_head(self) -> nn.Module:
        own, clip = self.cfg.TRAINER.STUDENT, isinstance(self.student, VLM)
        if own.INIT == "text" and not (clip and own.HEAD == "linear"):
            raise UsageError(
                f"TRAINER.STUDENT.INIT text: a {own.HEAD} head on {self.student.name} cannot start from texts: auto"
            )
        if clip and own.HEAD == "linear" and own.INIT != "kaiming":
            return self.text_initialised_linear()
        head = build_head(self.cfg.TRAINER.STUDENT.HEAD, self.student.width, len(self.classes.names))
        return ClassHead(head, self.classes)

    def learned(self) -> dict[str, nn.Module]:
        tower = self.student.model.visual if isinstance(self.student, VLM) else self.student
        return {"backbone": tower, "ce_head": self.ce_head}


@register_trainer
class StudentDHO(DHO, CE):
    """Two heads on the features of a student that is trained as a whole."""
