"""MaPLe (arXiv 2210.03117): deep text prompts, and visual prompts that are linear maps of them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..prompts import PromptedClassifier, PromptLearner
from ..registration import register_trainer
from ..towers import VLM, ImageEncoder
from .base import MethodTrainer
from .dho import DHO


class CoupledPrompts(nn.Module):
    """The prompts of both towers: each layer's text prompts (n, text width) go through a linear map of that layer.

    Args:
        vlm: the CLIP model. text: deep text prompts. seed: of the maps; the deeper layers start from one.

    Raises:
        UsageError: the image tower is no ViT, or has fewer layers than the prompts.
    """

    def __init__(self, vlm: VLM, text: PromptLearner, seed: int) -> None:
        super().__init__()
        self.text = text
        depth = 1 + (0 if text.deep is None else len(text.deep))
        vlm.check_visual_prompts(depth)
        widths = text.ctx.shape[-1], vlm.image_token_width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.couplings = nn.ModuleList(nn.Linear(*widths) for _ in range(depth))
        for deeper in self.couplings[2:]:
            deeper.load_state_dict(self.couplings[1].state_dict())

    def forward(self) -> Tensor:
        """The visual prompts (depth, n, image width)."""
        layers = [self.text.ctx, *(() if self.text.deep is None else self.text.deep)]
        return torch.stack([couple(prompts) for couple, prompts in zip(self.couplings, layers, strict=True)])


@register_trainer
class MaPLe(MethodTrainer):
    """Multi-modal prompt learning, with the original's options."""

    section = "MAPLE"
    defaults: ClassVar = {"N_CTX": 2, "CTX_INIT": "a photo of a", "PROMPT_DEPTH": 9, "PREC": "fp16"}
    config = "vit_b16_c2_ep5_batch4_2ctx_cross_datasets"

    def build_backbone(self) -> nn.Module:
        maple = self.cfg.TRAINER.MAPLE
        words = {"n_ctx": maple.N_CTX, "ctx_init": maple.CTX_INIT, "depth": maple.PROMPT_DEPTH}
        text = PromptLearner.deep_from_words(self.vlm, self.classes, **words, seed=self.view_seed)
        self.prompts = CoupledPrompts(self.vlm, text, self.view_seed)
        return ImageEncoder(self.vlm, self.prompts)

    def build_ce_head(self) -> nn.Module:
        return PromptedClassifier(self.vlm, self.prompts.text)

    def learned(self) -> dict[str, nn.Module]:
        return {"MultiModalPromptLearner": self.prompts}


@register_trainer
class MaPLeDHO(DHO, MaPLe):
    """MaPLe with a KD head on the prompted image feature."""
