"""Tip-Adapter-F and Tip-Adapter (arXiv 2111.03930): few-shot teachers, trained on the student's own shots.

The output folder is a reusable artefact: `--trainer StudentDHO --teacher FOLDER` distils from it ("DHO-F").
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..adapter import TipAdapterHead
from ..classes import ClassHead
from ..embedded.meters import MetricMeter
from ..errors import UsageError, check_choice
from ..pool import check_validation, copy_policy
from ..registration import register_trainer
from ..stopping import check
from ..templates import named_templates
from .base import MethodTrainer

CHOICES = ("fixed", "val")
BATCH = 256  # images encoded at a time while the cache is filled


@register_trainer
class TipAdapterF(MethodTrainer):
    """The keys start from the shots' features, averaged over augmented views, and are learned by cross-entropy.

    Text logits have the scale 1/TRAINER.DHO.ZETA and the prompts TRAINER.DHO.TEACHER.TEMPLATES, as a zero-shot teacher
    has. ALPHA and BETA serve while the keys are learned; CHOOSE val then searches them on the validation images.
    """

    section = "TIPADAPTER"
    defaults: ClassVar = {"ALPHA": 1.0, "BETA": 5.5, "CHOOSE": "val", "VIEWS": 10, "PREC": "fp16"}
    family = "TipAdapter"
    config = "rn50_ep20"

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        own = cfg.TRAINER.TIPADAPTER
        check_choice("TRAINER.TIPADAPTER.CHOOSE", own.CHOOSE, CHOICES)
        if own.VIEWS < 1:
            raise UsageError(f"TRAINER.TIPADAPTER.VIEWS {own.VIEWS}: expected at least one view of each shot")

    def templates(self) -> tuple[str, ...]:
        """As a zero-shot teacher reads them."""
        return named_templates(self.cfg.TRAINER.DHO.TEACHER.TEMPLATES, self.cfg.DATASET.NAME) or super().templates()

    def build_ce_head(self) -> nn.Module:
        own = self.cfg.TRAINER.TIPADAPTER
        texts = self.vlm.class_embeddings(self.classes.names, self.templates())
        head = TipAdapterHead(
            texts,
            len(self.dm.dataset.train_x),
            scale=1 / self.cfg.TRAINER.DHO.ZETA,
            alpha=own.ALPHA,
            beta=own.BETA,
        )
        self.adapter = head
        return ClassHead(head, self.classes)

    def learned(self) -> dict[str, nn.Module]:
        return {"adapter": self.ce_head}

    def before_train(self) -> None:
        if self.cfg.TRAINER.TIPADAPTER.CHOOSE == "val":
            check_validation(self.dm.dataset, "TRAINER.TIPADAPTER.CHOOSE val", copies=copy_policy(self.cfg))
        super().before_train()
        if not self.resumed:
            self.fill()

    @property
    def frozen_backbone(self) -> bool:
        """Not where tokens merge: the cache is filled in evaluation mode, and what is stored has all tokens."""
        return super().frozen_backbone and self.backbone.at_test is None

    def labeled_positions(self) -> int:
        views = self.cfg.TRAINER.TIPADAPTER.VIEWS * len(self.train_loader_x.batches.labels)
        return max(views, super().labeled_positions())

    @torch.no_grad()
    def fill(self) -> None:
        """Fill the cache with the mean of each shot's unit-length features over VIEWS of the training's own views."""
        self.set_model_mode("eval")
        source, labels = self.train_loader_x.batches.labeled, self.train_loader_x.batches.labels
        wanted = self.cfg.TRAINER.TIPADAPTER.VIEWS * len(labels)
        total = torch.zeros(len(labels), self.student.width, device=self.device)
        for start in tqdm(range(0, wanted, BATCH), disable=None, desc="cache"):
            check("while the cache was filled")
            batch = source.receive(source.batch(start, min(BATCH, wanted - start)))
            with self.precision.autocast():
                features = F.normalize(self.features(batch), dim=-1)
            total.index_add_(0, batch["index"].to(self.device), features)
        self.adapter.fill(F.normalize(total, dim=-1), labels.to(self.device))

    def unit_features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> unit-length features (N, d), float32."""
        with self.precision.autocast():
            return F.normalize(self.backbone(images).float(), dim=-1)

    @torch.no_grad()
    def settle(self) -> None:
        """Search alpha and beta on the validation images."""
        if self.cfg.TRAINER.TIPADAPTER.CHOOSE != "val":
            return
        self.set_model_mode("eval")
        pairs = self.answers(self.val_loader, self.unit_features)
        features, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
        accuracy = self.adapter.search(features, labels)
        print(
            f"alpha {float(self.adapter.alpha):g} and beta {float(self.adapter.beta):g}, {accuracy:.1f} % on "
            f"{len(labels):,} validation images"
        )

    def interpolated(self) -> dict[str, Any]:
        alpha, beta = float(self.adapter.alpha), float(self.adapter.beta)
        return {"alpha": alpha, "beta": beta, "chosen": self.cfg.TRAINER.TIPADAPTER.CHOOSE}


@register_trainer
class TipAdapter(TipAdapterF):
    """The cache as it is filled, nothing is trained."""

    def build_ce_head(self) -> nn.Module:
        return super().build_ce_head().requires_grad_(False)

    def learned(self) -> dict[str, nn.Module]:
        return {}

    def frozen_parts(self) -> dict[str, nn.Module]:
        return {"adapter": self.ce_head}

    def train(self, *_: Any) -> None:
        """Fill the cache, search, save, evaluate."""
        self.before_train()
        self.epoch = self.max_epoch - 1
        if self.start_epoch == 0:
            self.settle()
            self.save_model(self.epoch, self.output_dir)
            self.num_batches, self.meters = len(self.train_loader_x), MetricMeter()
            self.save_state(self.max_epoch, 0)  # which knows how far the log goes
        self.after_train()
