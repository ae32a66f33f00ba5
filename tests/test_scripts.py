"""The shell scripts, run as a user runs them, on the workspace's six classes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def bash(tmp_path: Path, *words: str, seeds: str = "1") -> str:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OUTPUT": str(tmp_path / "output"),
        "SEEDS": seeds,
    }
    done = subprocess.run(["bash", *words], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def options(workspace: Path) -> list[str]:
    models = f"MODEL.BACKBONE.NAME {workspace}/student.safetensors TRAINER.DHO.TEACHER.NAME {workspace}/teacher.pt"
    return f"{models} {runs.OPTIONS} {runs.PRECISION}".split()


def test_base_to_new_answers_for_new_classes_by_the_ce_pathway_alone(workspace, tmp_path):
    script = [str(SCRIPTS / "base_to_new.sh"), str(workspace), "CoOpDHO", "imagenet", "2", "vit_b16_ep50"]
    out = bash(tmp_path, *script, *options(workspace))
    assert out.count("The CE pathway alone answers") == 1
    numbers = {name: float(value) for name, value in re.findall(r"^(base|new|H) +([\d.]+) ", out, re.MULTILINE)}
    base, new = numbers["base"], numbers["new"]
    assert numbers["H"] == pytest.approx(2 * base * new / (base + new) if base + new else 0, abs=0.1)
    folder = tmp_path / "output/base2new/{}/imagenet/shots_2/CoOpDHO/vit_b16_ep50/seed1"
    assert (Path(str(folder).format("train_base")) / "kd_head").is_dir()
    assert (Path(str(folder).format("test_new")) / "log.txt").is_file()
    again = bash(tmp_path, *script, *options(workspace))
    assert again.count("not run again") == 2 and "epoch [" not in again
    with pytest.raises(AssertionError, match="was run with other options"):
        bash(tmp_path, *script, *options(workspace), "TRAINER.COOP.N_CTX", "4")


def test_base_to_ood_trains_once_and_sums_up_every_shift(workspace, tmp_path):
    script = [str(SCRIPTS / "base_to_ood.sh"), str(workspace), "CoOp", "imagenet", "2", "vit_b16_ep50"]
    out = bash(tmp_path, *script, *options(workspace))
    assert re.findall(r"^(test|A|R|Sketch|V2) +[\d.]+ ", out, re.MULTILINE) == ["test", "A", "R", "Sketch", "V2"]


def test_the_caspl_comparison_has_both_methods_with_caspl_and_dho(workspace, tmp_path):
    models = ["--backbone", f"{workspace}/student.safetensors", "--teacher", f"{workspace}/teacher.pt"]
    out = bash(tmp_path, str(SCRIPTS / "caspl.sh"), str(workspace), "imagenet", "--dry-run", "--shots", "2", *models)
    trainers = [words.partition(" ")[0] for words in out.split("--trainer ")[1:]]
    both = [f"{method}{kind}" for method in ("CoOp", "PromptSRC") for kind in ("", "CasPL", "DHO", "DHO")]
    assert trainers == ["ZeroshotCLIP", "ZeroshotCLIP", "CasPL", *both]
    assert out.count(f"TRAINER.CASPL.BOOSTING {tmp_path}/output/caspl/imagenet/CasPL_stage_one_no_labels/seed1") == 2


def test_the_average_is_over_seeds_and_takes_the_last_accuracy(tmp_path):
    for seed, accuracy in ((1, "50.0"), (2, "60.0")):
        for half, value in (("base", accuracy), ("new", "30.0")):
            folder = tmp_path / half / f"seed{seed}"
            folder.mkdir(parents=True)
            (folder / "log.txt").write_text(f"* accuracy: 1.0%\n* accuracy: {value}%\n")
    command = [sys.executable, str(SCRIPTS / "average.py"), str(tmp_path / "base"), str(tmp_path / "new")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0] == "base     55.0 ±7.1  (50.0, 60.0)"
    assert out[2] == "H        38.8 ±1.8  (37.5, 40.0)"
    (tmp_path / "new" / "seed1" / "log.txt-2026-11-21-12-00-00").write_text("* accuracy: 50.0%\n")  # it went on
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[1].startswith("new      40.0 ")
    (tmp_path / "new" / "seed1" / "log.txt-2026-11-21-12-00-00").write_text("interrupted\n")
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 1


def test_the_listing_of_a_large_tree_is_measured(tmp_path):
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), *sys.path]),
    }
    command = [sys.executable, str(SCRIPTS / "listing.py"), "17001"]
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert "16,000 labelled, 1,001 unlabelled, 50,000 test images" in out
    assert len(re.findall(r" s +\d+\.\d\d GiB more than before$", out, re.MULTILINE)) == 3
