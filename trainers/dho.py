"""DHO as an addition to any base method: a KD head on the features, a frozen teacher, two losses, one interpolation."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..classes import ClassHead, ClassList, KnowsClasses
from ..errors import UsageError, check_choice
from ..heads import HEAD_KINDS, DualHeadLogits, build_head
from ..interpolation import interpolate
from ..losses import dual_head_loss
from ..pool import POOLS, unlabeled_paths
from ..student import DualHeadStudent
from ..teachers import ZeroShotTeacher
from ..vlm import imagenet_templates, load_vlm
from .base import MethodTrainer

# Language-aware initialisation takes the student's own text features: those of another model, even of equal width, lie
# in another space. The paper's wording, the teacher's text encoder, is "teacher".
INITS = ("text", "teacher", "kaiming")


class DHO(MethodTrainer):
    """Mixed in before a base method's trainer, it adds the distillation pathway of Section D.2 to it.

    The base method keeps its own classifier as the CE pathway; a KD head on the features that enter that classifier is
    trained on the teacher's probabilities of labelled and unlabelled images; the two are interpolated at test time.
    """

    teacher_key = "TRAINER.DHO.TEACHER.NAME"
    ce_only = False  # set where a test set has classes that the KD head never saw

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        dho = cfg.TRAINER.DHO
        check_choice("TRAINER.DHO.UNLABELED_POOL", dho.UNLABELED_POOL, POOLS)
        check_choice("TRAINER.DHO.HEAD.KD", dho.HEAD.KD, HEAD_KINDS)
        check_choice("TRAINER.DHO.HEAD.INIT", dho.HEAD.INIT, INITS)
        for key, fits, wanted in (
            ("LAMBDA", 0 <= dho.LAMBDA <= 1, "in [0, 1]"),
            ("ALPHA", 0 <= dho.ALPHA <= 1, "in [0, 1]"),
            ("BETA", dho.BETA > 0, "positive"),
            ("ZETA", dho.ZETA > 0, "positive"),
            ("ETA", dho.ETA > 0, "positive"),
        ):
            if not fits:
                raise UsageError(f"TRAINER.DHO.{key} must be {wanted}, got {dho[key]}")

    # Data

    def unlabeled_paths(self) -> list[str]:
        dho = self.cfg.TRAINER.DHO
        return unlabeled_paths(self.cfg, self.dm.dataset.train_x, pool=dho.UNLABELED_POOL) if dho.UNLABELED else []

    def teacher_size(self) -> int | None:
        return self.teacher.vlm.image.size

    # Model

    @cached_property
    def teacher(self) -> ZeroShotTeacher:
        """Loaded when training starts: an evaluation needs no teacher."""
        dho = self.cfg.TRAINER.DHO
        templates = (
            imagenet_templates() if list(dho.TEACHER.TEMPLATES) == ["imagenet"] else tuple(dho.TEACHER.TEMPLATES)
        )
        vlm = load_vlm(dho.TEACHER.NAME).to(self.device)
        teacher = ZeroShotTeacher(vlm, self.classes.names, templates or self.templates(), zeta=dho.ZETA)
        self.precision.store(teacher.vlm)
        return teacher.to(self.device)

    def assemble(self) -> nn.Module:
        dho = self.cfg.TRAINER.DHO
        embeddings = None
        if dho.HEAD.INIT != "kaiming":
            source = self.teacher.vlm if dho.HEAD.INIT == "teacher" else self.vlm
            embeddings = source.class_embeddings(self.classes.names, self.templates())
        head = build_head(
            dho.HEAD.KD, self.vlm.width, len(self.classes.names), class_embeddings=embeddings, scale=1 / dho.ZETA
        )
        self.kd_head = ClassHead(head, self.classes)
        return DualHeadStudent(self.backbone, self.ce_head, self.kd_head)

    def learned(self) -> dict[str, nn.Module]:
        return {**super().learned(), "kd_head": self.kd_head}

    # Steps

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        images, labels = self.parse_batch_train(batch)
        views = batch["img_teacher"].to(self.device, non_blocking=True)
        extra = batch.get("unlabeled")
        if extra is not None:
            images = torch.cat([images, self.vlm.normalize(extra["img"].to(self.device, non_blocking=True))])
            views = torch.cat([views, extra["img_teacher"].to(self.device, non_blocking=True)])
        features = self.backbone(images)
        ce, kd = self.ce_logits(features).float(), self.kd_head(features).float()
        teacher = self.teacher(views)
        n = len(labels)
        dho = self.cfg.TRAINER.DHO
        labeled, unlabeled = DualHeadLogits(ce[:n], kd[:n]), DualHeadLogits(ce[n:], kd[n:])
        loss = dual_head_loss(
            labeled,
            labels,
            teacher[:n],
            unlabeled if extra is not None else None,
            teacher[n:] if extra is not None else None,
            ce_weight=dho.LAMBDA,
            temperature=dho.ETA,
            scale_by_t2=dho.KD_T2,
        )
        own = self.regularizers(images[:n], features[:n], labeled.ce)
        total = loss.total + dho.LAMBDA * sum(own.values())
        return {"loss": total, "loss_ce": loss.ce, "loss_kd": loss.kd, **own}, labeled.ce, labels

    @torch.no_grad()
    def heads(self, images: Tensor) -> DualHeadLogits:
        """Both heads' logits over the classes of the test set at hand, each (N, K), float32."""
        with self.precision.autocast():
            logits = self.model(images)
        return DualHeadLogits(logits.ce.float(), logits.kd.float()).restrict(self.test_rows)

    def load_over(self, trained_on: ClassList) -> None:
        """As for the control; but a CE pathway that serves any classes answers alone for those of another set."""
        bound = [m for m in self.ce_head.modules() if isinstance(m, KnowsClasses) and m.class_bound]
        try:
            super().load_over(trained_on)
        except UsageError as reason:
            if bound:
                raise
            self.ce_only = True
            print(f"The KD head cannot answer here ({reason}). The CE pathway alone answers")

    def loaded_parts(self) -> list[str]:
        return [name for name in super().loaded_parts() if not (self.ce_only and name == "kd_head")]

    def model_inference(self, images: Tensor) -> Tensor:
        if self.ce_only:
            return torch.softmax(self.heads(images).ce, dim=-1)
        return interpolate(self.heads(images), alpha=self.cfg.TRAINER.DHO.ALPHA, beta=self.cfg.TRAINER.DHO.BETA)
