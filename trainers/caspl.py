"""CasPL (arXiv 2409.17805): stage one learns boosting prompts from a larger CLIP on unlabelled images, stage two
freezes them, and a method learns its own prompts behind them with its own loss."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cascade import TEXT_ORDERS, BoostedVLM, BoostingPrompts
from ..errors import UsageError, check_choice
from ..losses import distillation_loss
from ..prompts import PromptedClassifier, PromptLearner
from ..registration import register_trainer
from ..saved import read_checkpoint, read_record, resume_folder
from ..teachers import Teacher, ZeroShotTeacher
from ..towers import ImageEncoder
from ..vlm import load_vlm
from .base import MethodTrainer
from .dho import WithoutLabels
from .section import check_unlabeled, kept_on_disk, teacher_views

BOOSTING = "boosting"  # the checkpoint folder of the prompts


@register_trainer
class CasPL(WithoutLabels):
    """Stage one: KL(senior || boosted student) on all training images, none of which shows its label.

    Its output folder is the reusable artefact that stage two reads. The defaults are those of the authors' published
    configuration for single datasets; the one for ImageNet and its shifts is the yaml file named below.
    """

    pool = "union"
    section = "CASPL"
    defaults: ClassVar = {
        "N_CTX_VISION": 8,
        "N_CTX_TEXT": 8,
        "CTX_INIT": "a photo of a",
        "PROMPT_DEPTH_VISION": 12,
        "PROMPT_DEPTH_TEXT": 12,
        "PREC": "fp16",
        "SENIOR": "ViT-L/14",  # the larger CLIP: anything that dho_plugin.vlm.load_vlm takes
        "TEMPERATURE": 1.0,
        "BOOSTING": "",  # stage two: output folder of stage one; train.py runs stage one itself if there is none
        "TEXT_ORDER": "boosting_first",  # or adapting_first, as in the authors' code
    }
    config = "vit_b16_c2_ep20_batch128_lr0025_4+4ctx_l1"
    teacher_key = "TRAINER.CASPL.SENIOR"

    @cached_property
    def senior(self) -> Teacher:
        """The larger CLIP with the dataset's single prompt, at the student's logit scale as in the authors' code."""
        vlm = load_vlm(self.cfg.TRAINER.CASPL.SENIOR).to(self.device)
        senior = ZeroShotTeacher(vlm, self.classes.names, self.templates(), zeta=1 / self.vlm.logit_scale)
        self.precision.store(senior.vlm)
        return kept_on_disk(self.cfg, senior.to(self.device), self.precision, self.device)

    def teacher_size(self) -> int:
        return self.senior.size

    def taught_by(self) -> Teacher:
        return self.senior

    def build_backbone(self) -> nn.Module:
        caspl = self.cfg.TRAINER.CASPL
        text = {"n_text": caspl.N_CTX_TEXT, "depth_text": caspl.PROMPT_DEPTH_TEXT, "ctx_init": caspl.CTX_INIT}
        visual = {"n_visual": caspl.N_CTX_VISION, "depth_visual": caspl.PROMPT_DEPTH_VISION}
        self.boosted = BoostedVLM(self.vlm, BoostingPrompts(self.vlm, **text, **visual, seed=self.view_seed))
        return ImageEncoder(self.boosted)

    def build_ce_head(self) -> nn.Module:
        return PromptedClassifier(self.boosted, PromptLearner(self.vlm, self.classes, n_ctx=0))

    def learned(self) -> dict[str, nn.Module]:
        return {BOOSTING: self.boosted.boosting}

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The loss, the logits and, for the accuracy that is shown, the senior's own answers instead of labels."""
        logits = self.model(self.images(batch)).float()
        senior = self.senior(teacher_views(batch, self.device))
        loss = distillation_loss(logits, senior, temperature=self.cfg.TRAINER.CASPL.TEMPERATURE)
        return {"loss": loss}, logits, senior.argmax(dim=-1)

    def answers_by_image(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        logits, senior = self.model(self.images(batch)), self.senior(teacher_views(batch, self.device))
        return {"the boosted student's logits": logits, "the senior's logits": senior}


class Cascade(MethodTrainer):
    """Stage two: mixed in before a method's trainer, it puts frozen boosting prompts in front of the method's own."""

    stage_one = CasPL.__name__
    boosting_from: tuple[str, int | None] | None = None  # folder and epoch of a checkpoint to evaluate

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        check_unlabeled(self, cfg)
        check_choice("TRAINER.CASPL.TEXT_ORDER", cfg.TRAINER.CASPL.TEXT_ORDER, TEXT_ORDERS)

    def build_backbone(self) -> Any:
        folder = self.boosting_from[0] if self.boosting_from else ""
        order = read_record(Path(folder)).get("TRAINER.CASPL.TEXT_ORDER") if folder else None
        self.boosted = BoostedVLM(self.vlm, self.boosting(), text_order=order or self.cfg.TRAINER.CASPL.TEXT_ORDER)
        backbone = super().build_backbone()
        backbone.vlm = self.boosted
        return backbone

    def build_ce_head(self) -> Any:
        head: Any = super().build_ce_head()
        self.boosted.check_order(*head.prompt_learner()[:3])
        head.vlm = self.boosted
        return head

    def boosting(self) -> BoostingPrompts:
        """Those of the checkpoint to evaluate, else of stage one; until either is known, any."""
        if self.boosting_from:
            state = read_checkpoint(Path(self.boosting_from[0]), BOOSTING, self.boosting_from[1])["state_dict"]
        elif self.cfg.TRAINER.CASPL.BOOSTING:
            state = self.stage_one_result(Path(self.cfg.TRAINER.CASPL.BOOSTING))
        else:
            prompts = BoostingPrompts(self.vlm, n_text=1, n_visual=1, ctx_init="", depth_text=1, depth_visual=1)
            return prompts.requires_grad_(False)
        return BoostingPrompts.like(self.vlm, state).requires_grad_(False)

    def stage_one_result(self, folder: Path) -> dict[str, Tensor]:
        """What stage one left in its output folder.

        Raises:
            UsageError: it is not finished, or learned in another model.
        """
        record, checkpoint = read_record(folder), read_checkpoint(folder, BOOSTING, None)
        for what, there, wanted in (
            ("student", record.get("MODEL.BACKBONE.NAME"), self.cfg.MODEL.BACKBONE.NAME),
            ("number of epochs", checkpoint["epoch"], record.get("OPTIM.MAX_EPOCH")),
        ):
            chosen = what != "student" and record.get("TEST.FINAL_MODEL") == "best_val"
            if record and there != wanted and not chosen:
                raise UsageError(
                    f"stage one in {folder}: its {what} is {there}, and {wanted} is wanted; run it (again)"
                )
        return checkpoint["state_dict"]

    def frozen_parts(self) -> dict[str, nn.Module]:
        return {BOOSTING: self.boosted.boosting}

    def before_train(self) -> None:
        if not self.cfg.TRAINER.CASPL.BOOSTING:
            raise UsageError(
                "no boosting prompts: run --trainer CasPL on this dataset and give its output folder as "
                "TRAINER.CASPL.BOOSTING (train.py does both stages by itself)"
            )
        folder = resume_folder(self.cfg)
        if (folder / BOOSTING / "checkpoint").is_file():
            there, here = read_checkpoint(folder, BOOSTING, None)["state_dict"], self.boosted.boosting.state_dict()
            if there.keys() != here.keys() or any(not torch.equal(there[k], here[k].cpu()) for k in here):
                raise UsageError(
                    f"{folder} holds a run behind other boosting prompts: choose another --output-dir, or delete it"
                )
        super().before_train()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        if directory:
            self.boosting_from = directory, epoch
            self.build_model()
        super().load_model(directory, epoch)
