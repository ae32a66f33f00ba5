"""Linear probe with language-aware initialisation: the "LP" rows of Table 13."""

from __future__ import annotations

from torch import nn

from ..heads import build_head
from ..registration import register_trainer
from .base import MethodTrainer
from .dho import DHO, ClassHead


@register_trainer
class LinearProbe(MethodTrainer):
    """A linear head on the frozen CLIP image feature, started from the text features of the classes."""

    section = "LINEARPROBE"
    config = "vit_b16_ep20"

    def build_ce_head(self) -> nn.Module:
        texts = self.vlm.class_embeddings(self.classes.names, self.templates())
        head = build_head("linear", self.vlm.width, len(self.classes.names), class_embeddings=texts)
        return ClassHead(head, self.classes)

    def learned(self) -> dict[str, nn.Module]:
        return {"ce_head": self.ce_head}


@register_trainer
class LinearProbeDHO(DHO, LinearProbe):
    """Two heads on the frozen CLIP image feature."""
