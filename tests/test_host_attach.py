"""`attach` on trainers as their authors wrote them: CoOp's CoOp and CoCoOp, MaPLe and PromptSRC of PromptSRC.

COOP_HOME=... PROMPTSRC_HOME=... DASSL_HOME=... pytest -m "host_coop or host_promptsrc" tests/test_host_attach.py
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import open_clip
import pytest
import tiny
import torch
from test_host_coop import run

# Weights come from a file instead of a download, and `cuda()` and `half()` do nothing, all from outside.
WITHOUT_GPU_AND_NETWORK = """
import sys
import torch
weights, train = sys.argv[1], sys.argv[2]
for cls in (torch.Tensor, torch.nn.Module):
    cls.cuda = cls.half = lambda self, *args, **kwargs: self
from clip import clip
clip._MODELS[weights] = weights
clip._download = lambda url: url
"""
RUN = (
    WITHOUT_GPU_AND_NETWORK
    + """
import runpy
sys.argv = sys.argv[2:]
runpy.run_path(train, run_name="__main__")
"""
)
# With LAMBDA 1 the host's parameters must move as those of the host alone do on the same batches.
COMPARE = (
    WITHOUT_GPU_AND_NETWORK
    + """
import argparse, importlib.util
spec = importlib.util.spec_from_file_location("train", train)
source = importlib.util.module_from_spec(spec)
spec.loader.exec_module(source)
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

parser = argparse.ArgumentParser()
for flag in ("root", "resume", "source-domains", "target-domains", "transforms", "backbone", "head", "config-file",
             "dataset-config-file", "output-dir", "trainer"):
    parser.add_argument("--" + flag, default="")
parser.add_argument("--seed", type=int)
parser.add_argument("opts", nargs=argparse.REMAINDER)
args = parser.parse_args(sys.argv[3:])

def make():
    cfg = source.setup_cfg(args)
    set_random_seed(1)
    return build_trainer(cfg)

attached = make()
host = type(attached).__bases__[1]
assert host.__module__.startswith("trainers."), host
batches, original = [], host.forward_backward
def recording(self, batch):
    batches.append(batch)
    return original(self, batch)
host.forward_backward = recording
attached.train()
host.forward_backward = original

args.trainer = host.__name__
control = make()
start = {k: v.clone() for m in control._models.values() for k, v in m.named_parameters()}
control.set_model_mode("train")
control.num_batches = 2
for step, batch in enumerate(batches):
    control.batch_idx = step % 2
    control.forward_backward(batch)
moved = 0
for part, module in control._models.items():
    ours = dict(attached._models[part].named_parameters())
    for key, value in module.named_parameters():
        assert torch.equal(value, ours[key]), key
        moved += not torch.equal(value, start[key])
assert len(batches) == 4 and moved, (len(batches), moved)
print("THE SAME", moved)
"""
)


def checkout(home: str, folder: Path, lines: str) -> Path:
    """A copy of a repository; only its train.py gains lines."""
    copy = folder / Path(home).name
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns(".git", "output"))
    source = (copy / "train.py").read_text()
    before = "\n\ndef print_args"
    assert before in source
    (copy / "train.py").write_text(source.replace(before, lines + before, 1))
    return copy


needs = {
    "COOP_HOME": pytest.mark.host_coop,
    "PROMPTSRC_HOME": pytest.mark.host_promptsrc,
}
# The line that attaches, the name of the DHO version, the trainer's yaml file, its options and checkpoint folder.
CASES = {
    "CoOp": (
        "COOP_HOME",
        "from trainers.coop import CoOp\ndho_plugin.attach(CoOp, name='AttachedCoOpDHO')",
        "AttachedCoOpDHO",
        "CoOp/vit_b16_ep50.yaml",
        "TRAINER.COOP.PREC fp32 TRAINER.COOP.N_CTX 4",
        "prompt_learner",
    ),
    "CoCoOp": (
        "COOP_HOME",
        "from trainers.cocoop import CoCoOp\ndho_plugin.attach(CoCoOp)",
        "CoCoOpDHO",
        "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml",
        "TRAINER.COCOOP.PREC fp32",
        "prompt_learner",
    ),
    "MaPLe": (
        "PROMPTSRC_HOME",
        "from trainers.maple import MaPLe\ndho_plugin.attach(MaPLe, name='AttachedMaPLeDHO')",
        "AttachedMaPLeDHO",
        "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets.yaml",
        "TRAINER.MAPLE.PREC fp32 TRAINER.MAPLE.PROMPT_DEPTH 2",
        "MultiModalPromptLearner",
    ),
    "PromptSRC": (
        "PROMPTSRC_HOME",
        "from trainers.promptsrc import PromptSRC\ndho_plugin.attach(PromptSRC, name='AttachedPromptSRCDHO')",
        "AttachedPromptSRCDHO",
        "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets.yaml",
        "TRAINER.PROMPTSRC.PREC fp32 TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 2 TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 2",
        "VLPromptLearner",
    ),
}
cases = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=[
                needs[case[0]],
                pytest.mark.skipif(
                    not (os.environ.get(case[0]) and os.environ.get("DASSL_HOME")),
                    reason=f"set {case[0]} and DASSL_HOME to checkouts",
                ),
            ],
            id=name,
        )
        for name, case in CASES.items()
    ],
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """OpenAI's format, in the two widths that MaPLe's file has in its code."""
    torch.manual_seed(0)
    vision, text = {**tiny.VIT, "width": 768}, {**tiny.TEXT, "width": 512, "heads": 8}
    model = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    model.logit_scale.data.fill_(4.0)
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    torch.save(tiny.openai_state(model, vision["image_size"]), path)
    return path


def command(case, workspace: Path, weights: Path, dataset: str, output: Path, flags: str = "") -> list[str]:
    _, _, name, config, options, _ = case
    shutil.rmtree(workspace / "imagenet" / "split_fewshot", ignore_errors=True)
    (workspace / "imagenet" / "preprocessed.pkl").unlink(missing_ok=True)
    line = f"--trainer {name} --root {workspace} --seed 1 --config-file configs/trainers/{config} "
    line += f"--dataset-config-file configs/datasets/{dataset}.yaml --output-dir {output} {flags} {options} "
    line += f"MODEL.BACKBONE.NAME {weights} TRAINER.DHO.TEACHER.NAME {workspace}/teacher.pt DATALOADER.NUM_WORKERS 0 "
    line += "INPUT.SIZE (32,32) DATALOADER.TRAIN_X.BATCH_SIZE 2 DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 2 "
    line += "OPTIM.WARMUP_EPOCH -1 TRAINER.DHO.STEPS_PER_EPOCH 2"
    return [str(weights), "train.py", *line.split()]


@cases
def test_trains_and_evaluates_by_its_own_train_py(case, workspace, weights, tmp_path):
    repository = checkout(os.environ[case[0]], tmp_path, f"\nimport dho_plugin\n{case[1]}\n")

    def start(dataset: str, output: str, flags: str = "", options: str = "") -> str:
        words = command(case, workspace, weights, dataset, tmp_path / output, flags)
        return run(repository, "-c", RUN, *words, *options.split()).stdout

    trained = start("imagenet", "train")
    assert "Finish training" in trained and "loss_kd" in trained and "Kaiming" not in trained
    assert (tmp_path / "train" / case[5] / "model.pth.tar-2").is_file()
    head = torch.load(tmp_path / "train" / "kd_head" / "model.pth.tar-2", weights_only=True)
    assert head["state_dict"]["head.weight"].shape == (6, 32) and head["epoch"] == 2

    load = f"--eval-only --model-dir {tmp_path}/train --load-epoch 2"
    accuracy = r"\* accuracy: [\d.]+%"
    assert re.findall(accuracy, start("imagenet", "eval", load)) == re.findall(accuracy, trained) != []
    shifted = start("imagenet_r", "shifted", load)
    assert re.search(r"\* total: 6\b", shifted) and "CE pathway alone" not in shifted
    if case is CASES["CoCoOp"]:  # a base class's head cannot name a new class, the context can
        new = "DATASET.SUBSAMPLE_CLASSES new"
        start("imagenet", "base", options="DATASET.SUBSAMPLE_CLASSES base")
        shown = start("imagenet", "new", load.replace("/train ", "/base "), new)
        assert "CE pathway alone answers" in shown and re.search(r"\* total: 6\b", shown)


@cases
def test_with_lambda_1_the_authors_parameters_move_exactly_as_without_us(case, workspace, weights, tmp_path):
    repository = checkout(os.environ[case[0]], tmp_path, f"\nimport dho_plugin\n{case[1]}\n")
    words = command(case, workspace, weights, "imagenet", tmp_path / "out")
    out = run(repository, "-c", COMPARE, *words, "TRAINER.DHO.LAMBDA", "1.0").stdout
    assert "THE SAME" in out
