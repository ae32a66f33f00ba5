"""The paper's rivals (Section 4.1): each a loss and a head, on student, views and steps of `StudentDHO`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..classes import ClassHead
from ..heads import DualHeadLogits, build_head
from ..losses import (
    DualHeadLoss,
    binary_distillation_loss,
    distillation_loss,
    feature_distillation_loss,
    supervised_loss,
)
from ..registration import register_trainer
from .dho import DHO, Distils, WithoutLabels
from .section import check_unlabeled, step_loss, teacher_views
from .student import CE


@register_trainer
class KD(WithoutLabels, Distils, CE):
    """L_KD of one head on unlabelled images alone (Eq. 3); the accuracy it shows is agreement with the teacher."""

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        logits = self.ce_logits(self.features(batch)).float()
        teacher = self.teacher(teacher_views(batch, self.device))
        dho = self.cfg.TRAINER.DHO
        loss = distillation_loss(logits, teacher, temperature=dho.ETA, scale_by_t2=dho.KD_T2)
        return {"loss": loss}, logits, teacher.argmax(dim=-1)


@register_trainer
class CEKD(Distils, CE):
    """One head for labels and teacher: lambda L_CE + (1 - lambda) L_KD on the same logits."""

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        labels, one = self.labels(batch), self.ce_logits(self.features(batch)).float()
        logits, teacher = DualHeadLogits(one, one), self.teacher(teacher_views(batch, self.device))
        loss = step_loss(self.cfg, logits, labels, teacher)
        self.monitor.note(logits, labels, teacher, self.ce_head, self.ce_head)
        return {"loss": loss.total, "loss_ce": loss.ce, "loss_kd": loss.kd}, one[: len(labels)], labels


class Projects(Distils, CE):
    """Mixed in where features are distilled: a learned projection to the teacher's width, which is thrown away.

    The teacher is loaded for an evaluation too, since it gives the width.
    """

    def build_backbone(self) -> nn.Module:
        self.projection = nn.Linear(self.student.width, self.teacher.width).to(self.device)
        return super().build_backbone()

    def learned(self) -> dict[str, nn.Module]:
        return {**super().learned(), "projection": self.projection}

    def feature_loss(self, features: Tensor, views: Tensor) -> Tensor:
        """CLIP-KD's loss between projected features (N, d) and the teacher's features of uint8 views (N, 3, s, s)."""
        target = self.teacher.features(views)
        return feature_distillation_loss(self.projection(features).float(), target, len(self.classes.names))


@register_trainer
class KDFeature(WithoutLabels, Projects):
    """The feature loss on unlabelled images alone; the teacher's class directions classify the projected feature."""

    def build_ce_head(self) -> nn.Module:
        rows, width, scale = self.teacher.directions(), self.teacher.width, 1 / self.cfg.TRAINER.DHO.ZETA
        head = build_head("cosine", width, len(self.classes.names), class_embeddings=rows, scale=scale)
        self.texts = ClassHead(head, self.classes).requires_grad_(False)
        return nn.Sequential(self.projection, self.texts)

    def learned(self) -> dict[str, nn.Module]:
        return {name: part for name, part in super().learned().items() if name != "ce_head"}

    def frozen_parts(self) -> dict[str, nn.Module]:
        return {"texts": self.texts}

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        features, views = self.features(batch), teacher_views(batch, self.device)
        shown = self.teacher(views).argmax(dim=-1)
        return {"loss": self.feature_loss(features, views)}, self.ce_head(features).float(), shown


@register_trainer
class CEKDFeature(Projects):
    """lambda L_CE + (1 - lambda) feature loss, its labelled and unlabelled terms averaged apart as in Eq. 7."""

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        features, labels = self.features(batch), self.labels(batch)
        n, weight = len(labels), self.cfg.TRAINER.DHO.LAMBDA
        views = teacher_views(batch, self.device)
        logits = self.ce_logits(features[:n]).float()
        kd = self.feature_loss(features[:n], views[:n])
        if len(features) > n:
            kd = kd + self.feature_loss(features[n:], views[n:])
        ce = supervised_loss(logits, labels)
        return {"loss": weight * ce + (1 - weight) * kd, "loss_ce": ce, "loss_kd": kd}, logits, labels


class SecondHead(DHO, CE):
    """Mixed in where a second head only helps to train the student: the CE head predicts."""

    ce_only = True

    def kd_loss(self, kd_logits: Tensor, teacher: Tensor, labeled: int) -> Tensor:
        """The second head's loss; the first `labeled` rows of both (N + M, C) are the labelled images'."""
        raise NotImplementedError

    def step_loss(self, logits: DualHeadLogits, labels: Tensor, teacher: Tensor) -> DualHeadLoss:
        weight = self.cfg.TRAINER.DHO.LAMBDA
        ce = supervised_loss(logits.ce[: len(labels)], labels)
        kd = self.kd_loss(logits.kd, teacher, len(labels))
        return DualHeadLoss(weight * ce + (1 - weight) * kd, ce, kd)


@register_trainer
class SSKD(SecondHead):
    """Two heads, one trained on labelled, one on unlabelled images (arXiv 2108.05045)."""

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        check_unlabeled(self, cfg)

    def kd_loss(self, kd_logits: Tensor, teacher: Tensor, labeled: int) -> Tensor:
        dho, rest = self.cfg.TRAINER.DHO, slice(labeled, None)
        return distillation_loss(kd_logits[rest], teacher[rest], temperature=dho.ETA, scale_by_t2=dho.KD_T2)


@register_trainer
class DHKD(SecondHead):
    """A second head with a binary loss on logits (arXiv 2411.08937), its two terms averaged apart as in Eq. 7."""

    def kd_loss(self, kd_logits: Tensor, teacher: Tensor, labeled: int) -> Tensor:
        eta = self.cfg.TRAINER.DHO.ETA
        sets = [slice(labeled), slice(labeled, None)] if len(teacher) > labeled else [slice(labeled)]
        return torch.stack([binary_distillation_loss(kd_logits[s], teacher[s], temperature=eta) for s in sets]).sum()
