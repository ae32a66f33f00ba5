"""Zero-shot CLIP: nothing is trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..heads import build_head
from ..registration import register_trainer
from .base import MethodTrainer


@register_trainer
class ZeroshotCLIP(MethodTrainer):
    """The classifier made of the texts of the class names; the row that every other is compared with."""

    section = "ZEROSHOTCLIP"
    config = "vit_b16"

    def build_ce_head(self) -> nn.Module:
        texts = self.vlm.class_embeddings(self.classes.names, self.templates())
        head = build_head(
            "cosine", self.vlm.width, len(self.classes.names), class_embeddings=texts, scale=self.vlm.logit_scale
        )
        return head.requires_grad_(False)

    def learned(self) -> dict[str, nn.Module]:
        return {}

    def train(self, *_: Any) -> None:
        """Only evaluate."""
        print("ZeroshotCLIP has nothing to train")
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """There is nothing to load."""
