"""Against MaPLe as the authors' PromptSRC checkout holds it: PROMPTSRC_HOME=... DASSL_HOME=... pytest -m host_promptsrc

Their couplings have CLIP ViT-B/16's widths written into them, 512 and 768, so the student here is as wide.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import agreement
import pytest
import tiny

pytestmark = agreement.needs("PROMPTSRC_HOME")

LAYERS = 3
WIDE = {**tiny.VIT, "width": 768, "layers": LAYERS}

SCRIPT = """
import sys
import agreement
agreement.without_gpu()
import torch
import trainers.maple as theirs
from dho_plugin.trainers.maple import MaPLe

ours, cfg = agreement.build(MaPLe, "MaPLeDHO", *sys.argv[1:])
agreement.lend_weights(theirs.clip, ours.cfg.MODEL.BACKBONE.NAME)
model = theirs.CustomCLIP(cfg, list(ours.classes.names), theirs.load_clip_to_cpu(cfg).float()).float()

def values(images, labels):
    with torch.no_grad():
        logits = model.eval()(images)
    return logits, {"loss": model.train()(images, labels)}

text, depth = ours.prompts.text, cfg.TRAINER.MAPLE.PROMPT_DEPTH
learned = {"prompt_learner.ctx": text.ctx}
for layer, coupling in enumerate(ours.prompts.couplings):
    their = f"compound_prompt_projections.{layer - 1}" if layer else "proj"
    learned |= {f"prompt_learner.{their}.{name}": value for name, value in coupling.named_parameters()}
    if layer:
        learned[f"prompt_learner.compound_prompts_text.{layer - 1}"] = text.deep[layer - 1]
assert set(learned) == {f"prompt_learner.{name}" for name, _ in model.prompt_learner.named_parameters()}
assert len(learned) == 3 * depth
same = ["prompt_learner.ctx"] if cfg.TRAINER.MAPLE.N_CTX <= 4 else []
with torch.no_grad():  # random prompts become as large as the tokens beside them, for the reason in save_student
    for name in learned.keys() - same:
        if "proj" not in name:
            learned[name].mul_(50)
agreement.five_steps(ours, model, learned, values, same=same)
"""


@pytest.fixture(scope="module")
def wide_student(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"width": 512, "heads": 8, "layers": LAYERS}.items():
            patch.setitem(tiny.TEXT, key, value)
        path = agreement.save_student(folder, WIDE)
    yield path
    shutil.rmtree(folder)  # half a gigabyte, which pytest would keep


@pytest.mark.parametrize(("n_ctx", "depth"), [(2, LAYERS), (4, 2), (5, 2), (2, 1)])
def test_features_logits_loss_and_five_steps_agree(workspace, wide_student, tmp_path, n_ctx, depth):
    """Prompts in all layers; in fewer than all; from random vectors (more than four tokens); in the first alone."""
    options = ["MODEL.BACKBONE.NAME", wide_student, "OPTIM.LR", 0.05]
    options += ["TRAINER.MAPLE.N_CTX", n_ctx, "TRAINER.MAPLE.PROMPT_DEPTH", depth]
    agreement.run("PROMPTSRC_HOME", SCRIPT, tmp_path, workspace, tmp_path, *options)
