"""Against the authors' PromptSRC: PROMPTSRC_HOME=... DASSL_HOME=... pytest -m host_promptsrc"""

from __future__ import annotations

import agreement

pytestmark = agreement.needs("PROMPTSRC_HOME")

SCRIPT = """
import sys
import agreement
agreement.without_gpu()
import torch.nn.functional as F
import trainers.promptsrc as theirs
from dho_plugin.trainers.promptsrc import PromptSRC

ours, cfg = agreement.build(PromptSRC, "PromptSRCDHO", *sys.argv[1:])
agreement.lend_weights(theirs.clip, ours.cfg.MODEL.BACKBONE.NAME)
model = theirs.CustomCLIP(cfg, list(ours.classes.names), theirs.load_clip_to_cpu(cfg).float()).float()
model.prompt_learner.fixed_embeddings = model.prompt_learner.fixed_embeddings.float()
src = cfg.TRAINER.PROMPTSRC

def values(images, labels):
    ce, texts, fixed, frozen, features, frozen_logits, logits = model(images, labels)
    terms = {
        "loss_scl_text": F.l1_loss(texts, fixed) * src.TEXT_LOSS_WEIGHT,
        "loss_scl_image": F.l1_loss(features, frozen) * src.IMAGE_LOSS_WEIGHT,
        "loss_scl_logits": F.kl_div(F.log_softmax(logits, 1), F.log_softmax(frozen_logits, 1), reduction="sum",
                                    log_target=True) / logits.numel(),
    }
    return logits, {"loss": ce + sum(terms.values()), **terms}

text, visual = ours.ce_head.prompt_learner, ours.backbone.visual.prompts
learned = {
    "prompt_learner.ctx": text.ctx,
    "text_encoder.transformer.resblocks.1.VPT_shallow": text.deep[0],
    "image_encoder.VPT": visual[0],
    "image_encoder.transformer.resblocks.1.VPT_shallow": visual[1],
}
agreement.five_steps(ours, model, learned, values, same=["prompt_learner.ctx"])
"""


def test_features_logits_losses_and_five_steps_agree(workspace, tmp_path):
    student = agreement.save_student(tmp_path)
    agreement.run("PROMPTSRC_HOME", SCRIPT, tmp_path, workspace, tmp_path, "MODEL.BACKBONE.NAME", student)
