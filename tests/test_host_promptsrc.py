"""Against the authors' PromptSRC: PROMPTSRC_HOME=... DASSL_HOME=... pytest -m host_promptsrc

Their code runs on the CPU here because `cuda()` and `half()` are made to do nothing, from outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.host_promptsrc,
    pytest.mark.skipif(
        not (os.environ.get("PROMPTSRC_HOME") and os.environ.get("DASSL_HOME")),
        reason="set PROMPTSRC_HOME and DASSL_HOME to checkouts of PromptSRC and Dassl.pytorch",
    ),
]

SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
workspace, output = Path(sys.argv[1]), Path(sys.argv[2])
for cls in (torch.Tensor, nn.Module):
    cls.cuda = cls.half = lambda self, *args, **kwargs: self

import runs, tiny
import torch.nn.functional as F
import trainers.promptsrc as theirs
from clip import clip as their_clip
from dho_plugin.host import HOST
assert HOST.startswith("dassl"), HOST

from dho_plugin import cli
from dho_plugin.trainers.promptsrc import PromptSRC as Ours  # the registry's PromptSRC is theirs here

def make():
    words = runs.words(workspace, "PromptSRCDHO", output, "", "OPTIM.NAME sgd OPTIM.LR 0.01 OPTIM.WARMUP_EPOCH -1")
    return Ours(cli.build_config(cli.parser().parse_args(words)))

ours = make()
cfg = ours.cfg
state = tiny.openai_state(tiny.tiny_clip(), 32)

def load(cfg, zero_shot_model=False):
    depth = (lambda key: 0) if zero_shot_model else (lambda key: cfg.TRAINER.PROMPTSRC[key])
    details = {"trainer": "IVLP", "vision_depth": depth("PROMPT_DEPTH_VISION"),
               "language_depth": depth("PROMPT_DEPTH_TEXT"), "vision_ctx": depth("N_CTX_VISION"),
               "language_ctx": depth("N_CTX_TEXT")}
    return their_clip.build_model(dict(state), details).float()

theirs.load_clip_to_cpu = load
original = cfg.clone(); original.defrost(); original.INPUT.SIZE = (32, 32)
model = theirs.CustomCLIP(original, list(ours.classes.names), load(cfg)).float()
model.prompt_learner.fixed_embeddings = model.prompt_learner.fixed_embeddings.float()
text, image = model.text_encoder.transformer.resblocks, model.image_encoder
pairs = [(model.prompt_learner.ctx, ours.ce_head.prompt_learner.ctx, slice(None)),
         (image.VPT, ours.backbone.visual.prompts, 0)]
pairs += [(text[i].VPT_shallow, ours.ce_head.prompt_learner.deep, i - 1) for i in range(1, 2)]
pairs += [(image.transformer.resblocks[i].VPT_shallow, ours.backbone.visual.prompts, i) for i in range(1, 2)]
for name, parameter in model.named_parameters():
    parameter.requires_grad_(any(parameter is pair[0] for pair in pairs))
with torch.no_grad():
    for their, our, part in pairs:
        their.copy_(our[part])

def close(a, b, what):
    torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-4, atol=1e-4, msg=lambda m: what + ": " + m)

optimizer = torch.optim.SGD([pair[0] for pair in pairs], lr=0.01, momentum=cfg.OPTIM.MOMENTUM,
                            weight_decay=cfg.OPTIM.WEIGHT_DECAY)
model.train(); ours.set_model_mode("train")
src = cfg.TRAINER.PROMPTSRC
for step in range(5):
    batch = ours.train_loader_x.batches[step]
    images, labels = ours.parse_batch_train(batch)
    ce, texts, fixed, frozen, features, frozen_logits, logits = model(images, labels)
    terms = {
        "loss_scl_text": F.l1_loss(texts, fixed) * src.TEXT_LOSS_WEIGHT,
        "loss_scl_image": F.l1_loss(features, frozen) * src.IMAGE_LOSS_WEIGHT,
        "loss_scl_logits": F.kl_div(F.log_softmax(logits, 1), F.log_softmax(frozen_logits, 1), reduction="sum",
                                    log_target=True) / logits.numel(),
    }
    losses, our_logits, _ = ours.losses(batch)
    close(ours._texts, texts, "text features")
    close(F.normalize(ours.backbone(images), dim=-1), features, "prompted image features")
    close(our_logits, logits, "logits")
    for name, value in terms.items():
        close(losses[name], value, name)
    total = ce + sum(terms.values())
    close(losses["loss"], total, "loss")
    optimizer.zero_grad(); total.backward(); optimizer.step()
    ours.model_backward_and_update(losses["loss"])
for their, our, part in pairs:
    close(our[part], their, "learned parameters after five steps")
assert (pairs[0][0] - make().ce_head.prompt_learner.ctx).abs().max() > 1e-3  # and they moved
print("AGREES")
"""


def test_features_logits_losses_and_five_steps_agree(workspace, tmp_path):
    folders = [
        os.environ["DASSL_HOME"],
        str(REPOSITORY),
        str(REPOSITORY / "tests"),
        str(tiny.absent_packages(tmp_path / "absent")),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "DHO_HOST": "dassl"}
    command = [sys.executable, "-c", SCRIPT, str(workspace), str(tmp_path)]
    done = subprocess.run(
        command, cwd=os.environ["PROMPTSRC_HOME"], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AGREES" in done.stdout
