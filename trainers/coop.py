"""CoOp (arXiv 2109.01134): context tokens of the text prompts are learned, both towers stay frozen."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..prompts import PromptedClassifier, PromptLearner
from ..registration import register_trainer
from .base import MethodTrainer
from .caspl import Cascade
from .dho import DHO


@register_trainer
class CoOp(MethodTrainer):
    """Context optimisation, with CoOp's options."""

    section = "COOP"
    defaults: ClassVar = {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "CLASS_TOKEN_POSITION": "end", "PREC": "fp16"}
    config = "vit_b16_ep50"

    ce_head: PromptedClassifier

    def build_ce_head(self) -> PromptedClassifier:
        coop = self.cfg.TRAINER.COOP
        learner = PromptLearner(
            self.vlm,
            self.classes,
            n_ctx=coop.N_CTX,
            ctx_init=coop.CTX_INIT,
            class_specific=coop.CSC,
            position=coop.CLASS_TOKEN_POSITION,
            seed=self.view_seed,
        )
        return PromptedClassifier(self.vlm, learner)

    def learned(self) -> dict[str, nn.Module]:
        return {"prompt_learner": self.ce_head.prompt_learner}


@register_trainer
class CoOpDHO(DHO, CoOp):
    """CoOp with a KD head on the frozen image feature, trained together with the context tokens (Table 13)."""


@register_trainer
class CoOpCasPL(Cascade, CoOp):
    """CoOp's context behind frozen boosting prompts."""

    config = "vit_b16_ep10_ctxv1"
