"""VPT (arXiv 2203.12119): learned tokens in the first layers of a frozen ViT, and a linear head."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..prompts import VisualPrompts
from ..registration import register_trainer
from ..towers import ImageEncoder
from .base import MethodTrainer
from .dho import DHO


@register_trainer
class VPT(MethodTrainer):
    """Deep visual prompts with a language-aware linear head."""

    section = "VPT"
    defaults: ClassVar = {"N_CTX": 4, "PROMPT_DEPTH": 3, "PREC": "fp16"}  # N_CTX as in PromptSRC; the paper is silent
    config = "vit_b16_ep20"

    def build_backbone(self) -> ImageEncoder:
        vpt = self.cfg.TRAINER.VPT
        self.visual = VisualPrompts(self.vlm, n=vpt.N_CTX, depth=vpt.PROMPT_DEPTH, seed=self.view_seed)
        return ImageEncoder(self.vlm, self.visual)

    def build_ce_head(self) -> nn.Module:
        return self.text_initialised_linear()

    def learned(self) -> dict[str, nn.Module]:
        return {"prompt_learner": self.visual, "ce_head": self.ce_head}


@register_trainer
class VPTDHO(DHO, VPT):
    """Two heads on the prompted image feature (Table 13: VPT-3 and VPT-9)."""
