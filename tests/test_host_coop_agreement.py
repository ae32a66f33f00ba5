"""Against the authors' CoOp: COOP_HOME=... DASSL_HOME=... pytest -m host_coop"""

from __future__ import annotations

from pathlib import Path

import agreement
import pytest

pytestmark = agreement.needs("COOP_HOME")

STEPS = """
import sys
import agreement
agreement.without_gpu()
import torch.nn.functional as F
import trainers.coop as theirs
from dho_plugin.trainers.coop import CoOp

ours, cfg = agreement.build(CoOp, "CoOpDHO", *sys.argv[1:])
agreement.lend_weights(theirs.clip, ours.cfg.MODEL.BACKBONE.NAME)
model = theirs.CustomCLIP(cfg, list(ours.classes.names), theirs.load_clip_to_cpu(cfg).float())

def values(images, labels):
    logits = model(images)
    return logits, {"loss": F.cross_entropy(logits, labels)}

learned = {f"prompt_learner.{name}": ours.ce_head.prompt_learner.ctx
           for name, _ in model.prompt_learner.named_parameters()}
agreement.five_steps(ours, model, learned, values, same=learned if cfg.TRAINER.COOP.CTX_INIT else ())
"""

# Trains theirs without us, and leaves images and their logits; or loads what ours saved, and compares the logits.
THEIRS = """
import argparse, sys
import agreement
agreement.without_gpu()
import torch
import train
import trainers.coop as theirs
from dassl.engine import build_trainer

workspace, student, output, model_dir, csc = sys.argv[1:]
agreement.lend_weights(theirs.clip, student)
opts = "TRAINER.COOP.PREC fp32 TRAINER.COOP.N_CTX 4 INPUT.SIZE (32,32) DATALOADER.NUM_WORKERS 0 DATASET.NUM_SHOTS 2"
opts += f" TRAINER.COOP.CSC {csc} DATALOADER.TRAIN_X.BATCH_SIZE 4 OPTIM.MAX_EPOCH 1 OPTIM.WARMUP_EPOCH -1 OPTIM.LR 0.1"
flags = dict.fromkeys("resume source_domains target_domains transforms backbone head".split())
cfg = train.setup_cfg(argparse.Namespace(
    **flags, root=workspace, output_dir=output, seed=7, trainer="CoOp", opts=opts.split(),
    config_file="configs/trainers/CoOp/vit_b16_ep50.yaml", dataset_config_file="configs/datasets/imagenet.yaml"))
trainer = build_trainer(cfg)
images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

def logits():
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(images)

if model_dir:
    trainer.load_model(model_dir, epoch=2)
    agreement.close(torch.load(f"{model_dir}/ours.pt"), logits(), "logits of our checkpoint")
else:
    trainer.train()
    torch.save({"images": images, "logits": logits()}, f"{output}/theirs.pt")
assert "dho_plugin" not in sys.modules
"""

OURS = """
import sys
import agreement
import torch
from dho_plugin.trainers.coop import CoOp

workspace, output, saved, *options = sys.argv[1:]
ours, _ = agreement.build(CoOp, "CoOpDHO", workspace, output, *options)
theirs = torch.load(f"{saved}/theirs.pt")

def logits():
    ours.set_model_mode("eval")
    with torch.no_grad():
        return ours.model_inference(theirs["images"])

assert (logits() - theirs["logits"]).abs().max() > 100 * agreement.TOLERANCE
ours.load_model(saved, epoch=1)
agreement.close(logits(), theirs["logits"], "logits of their checkpoint")
ours.train()
assert (logits() - theirs["logits"]).abs().max() > 100 * agreement.TOLERANCE
torch.save(logits(), f"{output}/ours.pt")
"""

CONTEXTS = {
    "generic": {"N_CTX": 4},
    "class-specific": {"N_CTX": 4, "CSC": True},
    "middle": {"N_CTX": 4, "CLASS_TOKEN_POSITION": "middle"},
    "middle of an odd number": {"N_CTX": 5, "CLASS_TOKEN_POSITION": "middle"},
    "front": {"N_CTX": 4, "CLASS_TOKEN_POSITION": "front"},
    "class-specific in front": {"N_CTX": 3, "CSC": True, "CLASS_TOKEN_POSITION": "front"},
    "words": {"CTX_INIT": "a photo of a"},
}


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return agreement.save_student(tmp_path_factory.mktemp("student"))


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=list(CONTEXTS))
def test_features_logits_loss_and_five_steps_agree(workspace, student, tmp_path, context):
    options = [word for key, value in context.items() for word in (f"TRAINER.COOP.{key}", value)]
    agreement.run("COOP_HOME", STEPS, tmp_path, workspace, tmp_path, "MODEL.BACKBONE.NAME", student, *options)


@pytest.mark.parametrize("class_specific", [False, True])
def test_checkpoints_load_both_ways(workspace, student, tmp_path, class_specific):
    first, ours, again = (tmp_path / name for name in ("theirs", "ours", "again"))
    again.mkdir()
    options = ["MODEL.BACKBONE.NAME", student, "OPTIM.LR", 0.1, "OPTIM.WARMUP_EPOCH", 1]
    options += ["TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CSC", class_specific]
    agreement.run("COOP_HOME", THEIRS, tmp_path, workspace, student, first, "", class_specific)
    agreement.run("COOP_HOME", OURS, tmp_path, workspace, ours, first, *options)
    agreement.run("COOP_HOME", THEIRS, tmp_path, workspace, student, again, ours, class_specific)
