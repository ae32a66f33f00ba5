"""Linear probe with language-aware initialisation: the "LP" rows of Table 13."""

from __future__ import annotations

from torch import nn

from ..registration import register_trainer
from .base import MethodTrainer
from .dho import DHO


@register_trainer
class LinearProbe(MethodTrainer):
    """A linear head on the frozen CLIP image feature, started from the text features of the classes."""

    section = "LINEARPROBE"
    config = "vit_b16_ep20"

    def build_ce_head(self) -> nn.Module:
        return self.text_initialised_linear()

    def learned(self) -> dict[str, nn.Module]:
        return {"ce_head": self.ce_head}


@register_trainer
class LinearProbeDHO(DHO, LinearProbe):
    """Two heads on the frozen CLIP image feature."""
