from __future__ import annotations

import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import runs

from dho_plugin import cli
from dho_plugin.__main__ import main as command
from dho_plugin.runs import load_run
from dho_plugin.tables import ablations, sweep
from dho_plugin.tables.ablations import (
    ALIGNED,
    ALL,
    CE_HEAD,
    INIT,
    KD_HEAD,
    NEITHER,
    NL_BOTH,
    NL_CE,
    NL_KD,
    TABLE_5,
    TABLE_14,
    TABLE_15,
    TUNED,
)
from dho_plugin.tables.students_rows import clip_teacher
from dho_plugin.tables.summary import NO_PAPER

DHO = "DHO"


def dry(words: str, capsys) -> dict[str, tuple]:
    """Configuration and parsed command line by the folder that holds a row's runs."""
    assert command(["ablations", *words.split(), "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    parsed = [cli.parser().parse_args(shlex.split(line)[2:]) for line in lines]
    return {Path(args.output_dir).parent.name: (cli.build_config(args), args) for args in parsed}


def test_the_papers_numbers():
    """Spot values of Tables 5, 14 and 15."""
    assert TABLE_5 == {NEITHER: (78.3,), ALL: (78.7,)}
    assert TABLE_14[DHO] == (61.7, 62.2, 62.6, 63.8, 65.1) and TABLE_14[NL_KD][4] == 65.9
    assert TABLE_15[DHO] == (60.64, 61.55, 65.37) and TABLE_15[NL_BOTH] == (61.66, 61.81, 65.59)
    assert TABLE_14[NL_CE][0] == 61.7 and TABLE_15[NL_CE][2] == 64.91


def block(name: str, words: str):
    args = ablations.parse(words.split())
    return ablations.WHICH[name](args, clip_teacher("shapes-teacher"))


def test_the_papers_numbers_stand_in_the_columns_of_their_shots():
    found = block("nonlinear", "--shots 1 16").paper
    assert found.columns == ("1-shot", "16-shot")
    assert list(found.rows[NL_KD]) == [62.1, 65.9] and list(found.rows[f"{NL_KD}{CE_HEAD}"]) == [None, 60.95]
    assert list(block("heads", "--shots 16").paper.rows[f"{DHO}{KD_HEAD}"]) == [61.55]
    assert block("heads", "--shots 4").paper == NO_PAPER
    assert block("start", "--shots 4").paper.rows == TABLE_5 and block("start", "--shots 4 8").paper == NO_PAPER


def test_start_varies_the_first_weights_and_the_kd_head(tmp_path, capsys):
    found = dry(f"--dataset shapes --which start --seeds 1 --output-dir {tmp_path}/out", capsys)
    keys = {
        name: (cfg.TRAINER.STUDENT.INIT, cfg.TRAINER.DHO.HEAD.INIT, cfg.TRAINER.DHO.HEAD.KD)
        for name, (cfg, _) in found.items()
    }
    assert keys == {
        "neither": ("kaiming", "kaiming", "linear"),
        "init._CE_head": ("text", "kaiming", "linear"),
        "init._KD_head": ("kaiming", "text", "linear"),
        "init._both": ("text", "text", "linear"),
        "aligned_KD_head": ("kaiming", "kaiming", "cosine"),
        "init._both_aligned_KD_head": ("text", "text", "cosine"),
    }
    for cfg, args in found.values():
        assert (cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME) == ("StudentDHO", "shapes-student")
        assert cfg.DATASET.NUM_SHOTS == 16 and cfg.OPTIM.LR == 0.0003 and not args.eval_only
    pairs = block("start", "").pairs
    assert {(ALL, NEITHER), (ALL, INIT), (ALL, ALIGNED), (INIT, NEITHER), (ALIGNED, NEITHER)} <= set(pairs)


def test_on_imagenet_start_is_table_5s_student(capsys):
    found = dry("--dataset imagenet --root nowhere --which start heads --seeds 1", capsys)
    cfg, _ = found["neither"]
    assert (cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.DHO.TEACHER.NAME) == ("ViT-B/16", "ViT-L/14@336px")
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH) == (5e-5, 32)
    cfg, _ = found["DHO"]
    assert (cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.DHO.TEACHER.NAME) == ("resnet18", "RN50")
    assert not any("tuned" in name for name in found)  # its validation images are test images


def test_heads_are_evaluations_of_one_training(tmp_path, capsys):
    words = f"--dataset shapes --which heads nonlinear --shots 2 --seeds 1 --output-dir {tmp_path}/out"
    found = dry(words, capsys)
    trained = {name: cfg for name, (cfg, args) in found.items() if not args.eval_only}
    assert list(trained) == ["DHO", "DHO_NL-Head-CE", "DHO_NL-Head-KD", "DHO_NL-Head-CE_KD"]  # DHO for both blocks
    kinds = [(cfg.TRAINER.STUDENT.HEAD, cfg.TRAINER.DHO.HEAD.KD) for cfg in trained.values()]
    assert kinds == [("linear", "auto"), ("nonlinear", "auto"), ("linear", "nonlinear"), ("nonlinear", "nonlinear")]
    assert {cfg.TRAINER.DHO.CHOOSE for cfg in trained.values()} == {"fixed"}
    again = {name: (cfg, args) for name, (cfg, args) in found.items() if args.eval_only}
    assert len(again) == 4 * 2 + 1
    for name, (cfg, args) in again.items():
        (of,) = [run for run in trained if name.startswith((f"{run}_CE_h", f"{run}_KD_h", f"{run}_tuned"))]
        assert args.model_dir == trained[of].OUTPUT_DIR
        assert kinds[list(trained).index(of)] == (cfg.TRAINER.STUDENT.HEAD, cfg.TRAINER.DHO.HEAD.KD)
    chosen = {name: (cfg.TRAINER.DHO.ALPHA, cfg.TRAINER.DHO.CHOOSE) for name, (cfg, _) in again.items()}
    assert chosen["DHO_CE_head_alone"] == (1.0, "fixed") and chosen["DHO_KD_head_alone"] == (0.0, "fixed")
    assert chosen["DHO_tuned_on_validation"][1] == "val" and chosen["DHO_NL-Head-KD_CE_head_alone"][0] == 1.0


def test_digits_have_a_teacher_of_ours_and_no_clip_student(tmp_path, capsys):
    found = dry(f"--dataset digits --seeds 1 --shots 2 --teacher noisy --output-dir {tmp_path}/out", capsys)
    assert "neither" not in found and found["teacher"][0].DATASET.NAME == "DigitsNoisy"
    for name in ("DHO", "DHO_NL-Head-CE"):
        assert found[name][0].TRAINER.DHO.TEACHER.NAME == found["teacher"][0].OUTPUT_DIR
    assert command(["ablations", "--dataset", "digits", "--which", "start"]) == 2
    assert "no CLIP student" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--which head", "Did you mean 'heads'"),
        ("--dataset digits --teacher cleen", "Did you mean 'clean'"),
        ("--which start TRAINER.DHO.HEAD.KD linear", "TRAINER.DHO.HEAD.KD is what"),
        ("--which heads TRAINER.DHO.CHOOSE val", "TRAINER.DHO.CHOOSE is what"),
        ("--shots 0", "--shots 0"),
    ],
)
def test_mistakes_are_said_before_anything_runs(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "worker", lambda: pytest.fail("too late"))
    assert command(["ablations", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_heads_for_real(workspace, tmp_path, monkeypatch, capsys):
    """Trainer and files as they are, in this process: six classes, an epoch of three steps."""
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    base = f"--dataset imagenet --root {workspace} --backbone timm/test_resnet --teacher {workspace}/teacher.pt"
    options = f"{runs.OPTIONS} {runs.PRECISION} OPTIM.MAX_EPOCH 1 INPUT.SIZE (32,32) USE_CUDA False"
    words = f"{base} --shots 2 --seeds 1 --jobs 1 --which heads --output-dir {tmp_path} {options}"
    assert command(["ablations", *words.split()]) == 0
    document = (tmp_path / "ablations.md").read_text()
    assert "## One head, both, and tuned" in document and TUNED not in document
    found = {r["row"]: r["accuracy"] for r in json.loads((tmp_path / "ablations.json").read_text())}
    assert list(found) == [DHO, f"{DHO}{CE_HEAD}", f"{DHO}{KD_HEAD}"]
    for row, alpha in ((f"{DHO}{CE_HEAD}", 1.0), (f"{DHO}{KD_HEAD}", 0.0), (DHO, 0.4)):
        run = load_run(tmp_path / "shots2" / "DHO" / "seed1", {"TRAINER.DHO.ALPHA": alpha})
        assert found[row] == run.test(), row
    assert capsys.readouterr().out.count("StudentDHO on timm/test_resnet") >= 3
