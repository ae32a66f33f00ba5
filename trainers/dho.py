"""DHO as an addition to any base method: a KD head on the features, a frozen teacher, two losses, one interpolation."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..classes import ClassList, KnowsClasses
from ..errors import UsageError
from ..heads import DualHeadLogits
from ..interpolation import search_alpha_beta
from ..losses import DualHeadLoss
from ..pool import check_validation, copy_policy, unlabeled_paths
from ..predicting import printable
from ..saved import read_checkpoint
from ..student import DualHeadStudent
from ..teachers import Teacher, ZeroShotTeacher, find_teacher
from ..towers import VLM
from .base import MethodTrainer
from .section import (
    CE_ALONE,
    answer,
    build_kd_head,
    build_teacher,
    check_section,
    check_unlabeled,
    distilled_paths,
    given,
    kept_on_disk,
    step_loss,
    teacher_views,
)

INTERPOLATION = "interpolation"  # the checkpoint folder of alpha and beta where they were searched
NO_ORACLE = "TRAINER.DHO.CHOOSE oracle: this dataset has no test images; take fixed values"


class Distils(MethodTrainer):
    """Mixed in before a trainer that learns from a teacher: the teacher, its views, the unlabelled images."""

    teacher_key = "TRAINER.DHO.TEACHER.NAME"
    find_teacher = staticmethod(find_teacher)

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        check_section(cfg)

    def unlabeled_paths(self) -> list[str]:
        return distilled_paths(self.cfg, self.dm.dataset)

    def teacher_size(self) -> int | None:
        return self.teacher.size

    @cached_property
    def teacher(self) -> Teacher:
        """Loaded when training starts: an evaluation needs no teacher."""
        items = self.dm.dataset.train_x
        teacher = build_teacher(self.cfg, self.classes, self.templates(), items, self.precision, self.device)
        return kept_on_disk(self.cfg, teacher, self.precision, self.device)

    def taught_by(self) -> Teacher:
        return self.teacher

    def compile_towers(self, backend: str) -> None:
        super().compile_towers(backend)
        if isinstance(self.teacher, ZeroShotTeacher):
            self.teacher.vlm.model.visual.compile(backend=backend)


class WithoutLabels(MethodTrainer):
    """Mixed in before a trainer whose steps see no label at all."""

    pool = "complement"  # see pool.unlabeled_paths

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        check_unlabeled(self, cfg)

    def training_images(self) -> tuple[list[str], list[int]]:
        dataset = self.dm.dataset
        paths = unlabeled_paths(self.cfg, dataset.train_x, dataset.test, pool=self.pool)
        if not paths:
            raise UsageError(
                f"no image is left for {type(self).__name__}, which uses no label: give --shots or --labels"
            )
        return paths, [-1] * len(paths)

    def unlabeled_paths(self) -> list[str]:
        return []


class DHO(Distils):
    """Mixed in before a base method's trainer, it adds the distillation pathway of Section D.2 to it.

    The base method keeps its own classifier as the CE pathway; a KD head on the features that enter that classifier is
    trained on the teacher's probabilities of labelled and unlabelled images; the two are interpolated at test time.
    """

    ce_only = False  # set where a test set has classes that the KD head never saw

    def before_train(self) -> None:
        if self.cfg.TRAINER.DHO.CHOOSE == "val":
            check_validation(self.dm.dataset, "TRAINER.DHO.CHOOSE val", copies=copy_policy(self.cfg))
        if self.cfg.TRAINER.DHO.CHOOSE == "oracle" and self.test_loader is None:
            raise UsageError(NO_ORACLE)
        super().before_train()

    # Model

    def assemble(self) -> nn.Module:
        self.kd_head = build_kd_head(
            self.cfg, self.student.width, self.classes, self.head_start(), clip=isinstance(self.student, VLM)
        )
        self.interpolation = given(self.cfg)
        return DualHeadStudent(self.backbone, self.ce_head, self.kd_head)

    def head_start(self) -> Tensor | None:
        """Class embeddings that the KD head starts from (C, d), None for Kaiming initialisation."""
        head, clip = self.cfg.TRAINER.DHO.HEAD, isinstance(self.student, VLM)
        if head.INIT == "kaiming" or (head.INIT == "auto" and (not clip or head.KD == "nonlinear")):
            return None
        if head.INIT != "teacher" and not clip:
            raise UsageError(f"HEAD.INIT text: {self.student.name} has no text tower; take kaiming, auto or teacher")
        if head.INIT == "teacher":
            return self.teacher.directions()
        return self.vlm.class_embeddings(self.classes.names, self.templates())

    def learned(self) -> dict[str, nn.Module]:
        return {**super().learned(), "kd_head": self.kd_head}

    def frozen_parts(self) -> dict[str, nn.Module]:
        chosen = {INTERPOLATION: self.interpolation} if self.cfg.TRAINER.DHO.CHOOSE != "fixed" else {}
        return {**super().frozen_parts(), **chosen}

    # Steps

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        features, labels = self.features(batch), self.labels(batch)
        logits = DualHeadLogits(self.ce_logits(features).float(), self.kd_head(features).float())
        teacher, n = self.teacher(teacher_views(batch, self.device)), len(labels)
        loss = self.step_loss(logits, labels, teacher)
        self.monitor.note(logits, labels, teacher, self.ce_head, self.kd_head)
        own = self.regularizers(batch, features[:n], logits.ce[:n])
        total = loss.total + self.cfg.TRAINER.DHO.LAMBDA * sum(own.values())
        return {"loss": total, "loss_ce": loss.ce, "loss_kd": loss.kd, **own}, logits.ce[:n], labels

    def answers_by_image(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features = self.features(batch)
        return {
            "the student's features": features,
            "the CE head's logits": self.ce_logits(features),
            "the KD head's logits": self.kd_head(features),
            "the teacher's logits": self.teacher(teacher_views(batch, self.device)),
        }

    def step_loss(self, logits: DualHeadLogits, labels: Tensor, teacher: Tensor) -> DualHeadLoss:
        """Both losses of a step; see the function of this name."""
        return step_loss(self.cfg, logits, labels, teacher)

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
            print(CE_ALONE.format(printable(str(reason))))

    def loaded_parts(self) -> list[str]:
        left_out = {INTERPOLATION, *(["kd_head"] if self.ce_only else [])}
        return [name for name in super().loaded_parts() if name not in left_out]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """As for the control; then alpha and beta that the run has chosen, or else those to be chosen now."""
        super().load_model(directory, epoch)
        wanted = self.cfg.TRAINER.DHO.CHOOSE
        if (Path(directory) / INTERPOLATION).is_dir():
            self.interpolation.load_state_dict(read_checkpoint(Path(directory), INTERPOLATION, epoch)["state_dict"])
        if wanted not in ("fixed", self.interpolation.source):
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Choose alpha and beta where they are to be searched; both heads' logits are computed once."""
        wanted = self.cfg.TRAINER.DHO.CHOOSE
        if wanted == "fixed" or self.ce_only:
            return
        if wanted == "val":
            check_validation(self.dm.dataset, "TRAINER.DHO.CHOOSE val", copies=copy_policy(self.cfg))
        self.set_model_mode("eval")
        split, loader = ("val", self.val_loader) if wanted == "val" else ("test", self.test_loader)
        if loader is None:
            raise UsageError(NO_ORACLE)
        answers, parts = zip(*self.answers(loader, self.heads), strict=True)
        logits, labels = DualHeadLogits(*(torch.cat(part) for part in zip(*answers, strict=True))), torch.cat(parts)
        best = search_alpha_beta(logits, labels, split=split, allow_oracle=wanted == "oracle")
        self.interpolation.alpha, self.interpolation.beta, self.interpolation.source = *best[:2], wanted
        where = f"{len(labels):,} validation images" if wanted == "val" else "the TEST images: an oracle, not a result"
        print(f"alpha {best.alpha:g} and beta {best.beta:g}, {best.accuracy:.1f} % on {where}")

    def interpolated(self) -> dict[str, Any] | None:
        at = self.interpolation
        return None if self.ce_only else {"alpha": at.alpha, "beta": at.beta, "chosen": at.source}

    def class_logits(self, images: Tensor) -> Tensor:
        return self.model_inference(images).clamp_min(torch.finfo(torch.float32).tiny).log()

    def model_inference(self, images: Tensor) -> Tensor:
        return answer(self.heads(images), self.interpolation, ce_only=self.ce_only)
