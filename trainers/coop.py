"""CoOp (arXiv 2109.01134): context tokens of the text prompts are learned, both towers stay frozen."""

from __future__ import annotations

from torch import nn

from ..prompts import PromptedClassifier, PromptLearner
from ..registration import register_trainer
from .base import MethodTrainer
from .dho import DHO


@register_trainer
class CoOp(MethodTrainer):
    """Context optimisation. Options: TRAINER.COOP.{N_CTX, CSC, CTX_INIT, CLASS_TOKEN_POSITION, PREC}."""

    section = "COOP"
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
