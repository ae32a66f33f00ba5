"""Inside an unmodified CoOp checkout with the real Dassl: COOP_HOME=... DASSL_HOME=... pytest -m host_coop"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.host_coop,
    pytest.mark.skipif(
        not (os.environ.get("COOP_HOME") and os.environ.get("DASSL_HOME")),
        reason="set COOP_HOME and DASSL_HOME to checkouts of CoOp and Dassl.pytorch",
    ),
]

LINE = "import dho_plugin.trainers\n"


@pytest.fixture(scope="module")
def coop(tmp_path_factory) -> Path:
    """A copy of the checkout; only its train.py gains a line."""
    copy = tmp_path_factory.mktemp("coop") / "CoOp"
    shutil.copytree(os.environ["COOP_HOME"], copy, ignore=shutil.ignore_patterns(".git", "output"))
    return copy


def run(coop: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(
        [os.environ["DASSL_HOME"], str(REPOSITORY), str(tiny.absent_packages(coop.parent / "absent"))]
    )
    env = {**os.environ, "PYTHONPATH": path, "DHO_HOST": "auto"}
    done = subprocess.run([sys.executable, *command], cwd=coop, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def add_line(coop: Path, before: str) -> None:
    original = Path(os.environ["COOP_HOME"], "train.py").read_text()
    assert before in original
    (coop / "train.py").write_text(original.replace(before, LINE + before, 1))


@pytest.mark.parametrize("before", ["import datasets.oxford_pets", "\n\ndef print_args"], ids=["above", "below"])
def test_one_import_line_is_enough(coop, workspace, tmp_path, before):
    add_line(coop, before)
    shutil.rmtree(workspace / "imagenet" / "split_fewshot", ignore_errors=True)
    (workspace / "imagenet" / "preprocessed.pkl").unlink(missing_ok=True)
    options = f"DATALOADER.NUM_WORKERS 0 MODEL.BACKBONE.NAME {workspace}/student.safetensors"
    options += f" TRAINER.DHO.TEACHER.NAME {workspace}/teacher.pt TRAINER.DHO.STEPS_PER_EPOCH 2 TRAINER.COOP.N_CTX 4"
    base = (
        f"train.py --trainer CoOpDHO --root {workspace} --seed 1 --config-file configs/trainers/CoOp/vit_b16_ep50.yaml"
    )
    train = f"{base} --dataset-config-file configs/datasets/imagenet.yaml --output-dir {tmp_path}/train"
    done = run(coop, *f"{train} {options} OPTIM.MAX_EPOCH 2 DATASET.NUM_SHOTS 2".split())
    assert "CoOpDHO on" in done.stdout and "Finish training" in done.stdout
    assert (tmp_path / "train/kd_head/model.pth.tar-2").is_file()
    assert (tmp_path / "train/prompt_learner/model.pth.tar-2").is_file()
    # CoOp's own dataset class served: it alone writes this cache.
    assert (workspace / "imagenet/split_fewshot/shot_2-seed_1.pkl").is_file()

    evaluate = f"{base} --dataset-config-file configs/datasets/imagenet_r.yaml --output-dir {tmp_path}/eval --eval-only"
    done = run(coop, *f"{evaluate} --model-dir {tmp_path}/train --load-epoch 2 {options}".split())
    assert re.search(r"\* total: 6\b", done.stdout)


@pytest.mark.parametrize("first", ["dho_plugin.trainers", "trainers.coop"])
def test_nothing_of_coops_is_shadowed(coop, first):
    code = f"""
import {first}
import datasets.imagenet, datasets.imagenet_a, datasets.imagenet_r, datasets.imagenet_sketch, datasets.imagenetv2
import trainers.coop, trainers.zsclip, dho_plugin.trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.data.datasets import DATASET_REGISTRY
for name in ("CoOp", "ZeroshotCLIP"):
    print(name, TRAINER_REGISTRY.get(name).__module__)
for name in ("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"):
    print(name, DATASET_REGISTRY.get(name).__module__)
print("CoOpDHO", TRAINER_REGISTRY.get("CoOpDHO").__module__, trainers.__file__)
"""
    lines = dict(line.split(" ", 1) for line in run(coop, "-c", code).stdout.splitlines() if line[:1].isupper())
    assert lines["CoOp"] == "trainers.coop" and lines["ZeroshotCLIP"] == "trainers.zsclip"
    assert {lines[n].partition(".")[0] for n in ("ImageNet", "ImageNetV2", "ImageNetA", "ImageNetR")} == {"datasets"}
    assert lines["CoOpDHO"] == f"dho_plugin.trainers.coop {coop}/trainers/__init__.py"


@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_labelled_split_is_image_for_image_coops(coop, workspace, tmp_path, shots, seed):
    """With the listing sorted, which is what ours always does and CoOp leaves to the file system."""
    code = f"""
import os, shutil
listdir, scandir = os.listdir, os.scandir
os.listdir = lambda path=".": sorted(listdir(path))
shutil.rmtree("{workspace}/imagenet/split_fewshot", ignore_errors=True)
from datasets.imagenet import ImageNet as Theirs
from dassl.config import get_cfg_default
from dassl.utils import set_random_seed
import dho_plugin.trainers
from dho_plugin.datasets import ImageNet as Ours
cfg = get_cfg_default()
cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = "{workspace}", {shots}, {seed}
splits = []
for kind in (Theirs, Ours):
    set_random_seed({seed})
    dataset = kind(cfg)
    splits.append([(os.path.abspath(i.impath), i.label, i.classname) for i in dataset.train_x])
    print("SPLIT", kind.__module__, len(dataset.train_x), len(dataset.test))
assert splits[0] == splits[1], (splits[0][:3], splits[1][:3])
print("SAME")
"""
    (workspace / "imagenet" / "preprocessed.pkl").unlink(missing_ok=True)
    out = run(coop, "-c", code).stdout
    assert "SAME" in out and out.count(f" {6 * shots} 12") == 2
