"""PromptSRC (arXiv 2307.06948): deep text and visual prompts, tied to the frozen model and averaged over the epochs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..averaging import WeightedAverage, gaussian_weights
from ..prompts import PromptedClassifier, PromptLearner, VisualPrompts
from ..registration import register_trainer
from ..towers import ImageEncoder
from ..vlm import imagenet_templates
from .base import MethodTrainer
from .caspl import Cascade
from .dho import DHO

NUM_TEMPLATES = 60  # the first 60 of CLIP's 80, as in the authors' code


@register_trainer
class PromptSRC(MethodTrainer):
    """Self-regulating prompts, with the original's options."""

    section = "PROMPTSRC"
    defaults: ClassVar = {
        "N_CTX_VISION": 4,
        "N_CTX_TEXT": 4,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9,
        "PROMPT_DEPTH_TEXT": 9,
        "TEXT_LOSS_WEIGHT": 25,
        "IMAGE_LOSS_WEIGHT": 10,
        "GPA_MEAN": 15,
        "GPA_STD": 1,
    }
    config = "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets"
    regularized = True
    ce_head: PromptedClassifier

    def build_backbone(self) -> ImageEncoder:
        src = self.cfg.TRAINER.PROMPTSRC
        self.visual = VisualPrompts(self.vlm, n=src.N_CTX_VISION, depth=src.PROMPT_DEPTH_VISION, seed=self.view_seed)
        return ImageEncoder(self.vlm, self.visual)

    def build_ce_head(self) -> PromptedClassifier:
        src = self.cfg.TRAINER.PROMPTSRC
        words = {"n_ctx": src.N_CTX_TEXT, "ctx_init": src.CTX_INIT, "depth": src.PROMPT_DEPTH_TEXT}
        learner = PromptLearner.deep_from_words(self.vlm, self.classes, **words, seed=self.view_seed)
        self.frozen_texts = self.vlm.mean_class_embeddings(self.classes.names, imagenet_templates()[:NUM_TEMPLATES])
        return PromptedClassifier(self.vlm, learner)

    def learned(self) -> dict[str, nn.Module]:
        return {"VLPromptLearner": nn.ModuleDict({"text": self.ce_head.prompt_learner, "visual": self.visual})}

    def build_average(self) -> WeightedAverage:
        src = self.cfg.TRAINER.PROMPTSRC
        weights = gaussian_weights(self.cfg.OPTIM.MAX_EPOCH, mean=src.GPA_MEAN, std=src.GPA_STD)
        return WeightedAverage(self._models, weights)

    def ce_logits(self, features: Tensor) -> Tensor:
        self._texts = self.ce_head.text_features()
        return self.ce_head.logits(features, self._texts)

    def regularizers(self, batch: dict[str, Any], features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The three self-consistency terms: prompted text, image feature and logits against the frozen model's."""
        src = self.cfg.TRAINER.PROMPTSRC
        with torch.no_grad():
            frozen = F.normalize(self.frozen_features(batch), dim=-1)
            frozen_logits = self.vlm.logit_scale * frozen @ self.frozen_texts.t()
        return self_consistency(
            self._texts,
            self.frozen_texts,
            F.normalize(features.float(), dim=-1),
            frozen,
            logits.float(),
            frozen_logits,
            text_weight=src.TEXT_LOSS_WEIGHT,
            image_weight=src.IMAGE_LOSS_WEIGHT,
        )


def self_consistency(
    texts: Tensor,
    frozen_texts: Tensor,
    images: Tensor,
    frozen_images: Tensor,
    logits: Tensor,
    frozen_logits: Tensor,
    *,
    text_weight: float,
    image_weight: float,
) -> dict[str, Tensor]:
    """L_SCL-text, L_SCL-image (weighted mean absolute differences) and L_SCL-logits (KL(frozen || prompted), over N C).

    Args:
        texts, frozen_texts: (C, d) unit-length text features. images, frozen_images: (N, d) unit-length image features.
        logits, frozen_logits: (N, C). The division by N C instead of N is the authors' code's.
    """
    divergence = F.kl_div(
        F.log_softmax(logits, dim=1), F.log_softmax(frozen_logits, dim=1), reduction="sum", log_target=True
    )
    return {
        "loss_scl_text": text_weight * F.l1_loss(texts, frozen_texts),
        "loss_scl_image": image_weight * F.l1_loss(images, frozen_images),
        "loss_scl_logits": divergence / logits.numel(),
    }


@register_trainer
class PromptSRCDHO(DHO, PromptSRC):
    """PromptSRC with a KD head on the prompted image feature; the average covers the KD head too."""


@register_trainer
class PromptSRCCasPL(Cascade, PromptSRC):
    """PromptSRC's text and visual prompts behind frozen boosting prompts; its frozen references stay unboosted."""

    config = "vit_b16_c2_ep20_batch4_8+8ctx_cross_datasets_l3"
