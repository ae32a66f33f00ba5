from __future__ import annotations

import json
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest
import runs

from dho_plugin import cli, vlm
from dho_plugin.__main__ import main as command
from dho_plugin.runs import load_run
from dho_plugin.tables import by_sets, sweep
from dho_plugin.tables.low_shot_rows import OTHERS, PAIRS, PAPER, Pair, papers_table, rows


def dry(words: str, capsys) -> list[tuple]:
    """Configuration and parsed command line of each run."""
    assert command(["low-shot", *words.split(), "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    parsed = [cli.parser().parse_args(shlex.split(line)[2:]) for line in lines]
    return [(cli.build_config(args), args) for args in parsed]


def test_the_papers_numbers():
    """Spot values of Tables 4, 5, 9 and 12."""
    assert PAPER["ViT-B/16, zero-shot"] == (66.7, 60.8, 46.2, 74.0, 47.0)
    assert PAPER["DFN ViT-H/14, zero-shot"][4] == 77.4 and PAPER["ViT-L/14@336px, zero-shot"][0] == 75.3
    assert PAPER["ViT-B/16 <- ViT-L/14@336px, 1 %"] == (78.7, 70.1, 48.0, 70.9, 41.1)
    assert PAPER["ViT-B/16 <- DFN ViT-H/14, 10 %"] == (82.8, 73.6, 50.7, 67.7, 37.8)
    assert PAPER["ViT-L/14@336px <- DFN ViT-H/14, 10 %, beta 0.5"] == (85.9, None, None, None, None)
    merged = [PAPER[f"ViT-B/16 <- DFN ViT-H/14, {amount}, beta 0.5, tokens merged"][0] for amount in ("1 %", "10 %")]
    assert merged == [81.4, 82.5]
    assert PAPER["ViT-B/16 <- ViT-L/14@336px, 1 %, neither"][0] == 78.3
    assert OTHERS["REACT (gated image), ViT-L/14"] == (380, 81.6, 85.0) and len(OTHERS) == 19
    assert papers_table().lines[-1] == ("DFN, ViT-H/14, zero-shot", "632", "84.4", "-")


def test_every_row_of_the_paper_is_a_row():
    methods = list(rows("imagenet", PAIRS["imagenet"], ("simclr-1", "simclr-10"), starts=True))
    names = [method.row for method in methods]
    assert len(set(names)) == len(names) and set(PAPER) <= set(names)
    assert len(names) == 3 + 3 * 2 * 2 + 2 + 5
    above: set[str] = set()
    for method in methods:
        assert method.after in {"", *above} and method.control in {"", *above}
        above.add(method.row)


def test_a_dry_run_on_imagenet(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vlm, "_pretrained", lambda *_, **__: pytest.fail("looked for weights"))
    found = dry(f"--dataset imagenet --root nowhere --seeds 1 --starts --output-dir {tmp_path}/out", capsys)
    assert all(args.ood for _, args in found) and len({cfg.OUTPUT_DIR for cfg, _ in found}) == len(found) == 22
    trained = [cfg for cfg, args in found if cfg.TRAINER.NAME == "StudentDHO" and not args.eval_only]
    large = [cfg for cfg in trained if cfg.MODEL.BACKBONE.NAME == "ViT-L/14@336px"]
    assert [(cfg.DATASET.LABELS, cfg.TRAIN.ACCUMULATE) for cfg in large] == [("simclr-1", 4), ("simclr-10", 4)]
    assert {cfg.TRAINER.DHO.TEACHER.NAME for cfg in large} == {"ViT-H-14-378-quickgelu:dfn5b"}
    for cfg in trained:
        assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.WARMUP_EPOCH, cfg.DATASET.NUM_SHOTS) == (5e-5, 32, 1, -1)
        assert cfg.TRAINER.DHO.ALPHA == 0.5
    first, starts = trained[:6], trained[6:]
    assert {cfg.TRAINER.DHO.BETA for cfg in first} == {1.0} and {cfg.TRAINER.DHO.BETA for cfg in starts} == {0.5}
    assert [(cfg.TRAINER.STUDENT.INIT, cfg.TRAINER.DHO.HEAD.INIT, cfg.TRAINER.DHO.HEAD.KD) for cfg in starts] == [
        *(("kaiming", "kaiming", "linear"), ("text", "kaiming", "linear"), ("kaiming", "text", "linear")),
        *(("text", "text", "linear"), ("kaiming", "kaiming", "cosine")),
    ]
    again = [(cfg, args) for cfg, args in found if args.eval_only]
    assert {args.model_dir for _, args in again} == {cfg.OUTPUT_DIR for cfg in first}
    assert {cfg.TRAINER.DHO.BETA for cfg, _ in again} == {0.5}
    merged = [args.model_dir for cfg, args in again if cfg.MODEL.TOKEN_MERGING]
    assert {cfg.MODEL.TOKEN_MERGING for cfg, _ in again} == {0, 8}
    assert merged == [cfg.OUTPUT_DIR for cfg in first if "ViT-B_16_-_DFN" in cfg.OUTPUT_DIR]
    assert not (tmp_path / "out").exists()


def test_a_dry_run_on_shapes_has_as_many_labels_in_per_cent(capsys):
    found = dry("--seeds 1", capsys)
    trained = [cfg for cfg, args in found if cfg.TRAINER.NAME == "StudentDHO" and not args.eval_only]
    assert [(cfg.DATASET.NUM_SHOTS, cfg.OPTIM.LR) for cfg in trained] == [(1, 0.0003), (8, 0.0003)]
    assert {cfg.MODEL.BACKBONE.NAME for cfg in trained} == {"shapes-student"}
    assert len(found) == 2 + 2 * 3


def test_rows_are_labelled_by_models_and_labels():
    methods = list(rows("imagenet", [Pair("S", "T")], ("3", "lists/mine.txt")))
    names = ["S <- T, 3-shot", "S <- T, mine.txt"]
    assert [method.row for method in methods][2::2] == names
    assert methods[2].flags[2:4] == ("--shots", "3") and methods[4].flags[2:4] == ("--labels", "lists/mine.txt")
    assert methods[2].control == methods[4].control == "S, zero-shot"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset dtd --root x", "no CLIP student for it"),
        ("--backbone ViT-B/16", "give both, or neither"),
        ("--teacher shapes-teacher", "give both, or neither"),
        ("--backbone shapes-student --teacher shapes-teache", "Did you mean 'shapes-teacher'"),
        ("--seeds 1 TRAINER.DHO.BETA 2", "TRAINER.DHO.BETA is what"),
        ("--rows LoRA", "--rows LoRA"),
        ("--jobs 0", "--jobs 0"),
    ],
)
def test_mistakes_are_said_before_anything_runs(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "worker", lambda: pytest.fail("too late"))
    monkeypatch.setattr(by_sets, "check_data", lambda cells: pytest.fail("too late"))
    assert command(["low-shot", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_small_table_for_real(workspace, tmp_path, monkeypatch, capsys):
    """Trainer and files as they are, in this process: six classes, an epoch of three steps."""
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    models = f"--backbone {workspace}/student.safetensors --teacher {workspace}/teacher.pt"
    options = f"{runs.OPTIONS} {runs.PRECISION} OPTIM.MAX_EPOCH 1 OPTIM.WARMUP_EPOCH -1 USE_CUDA False"
    words = f"--dataset imagenet --root {workspace} {models} --labels 1 2 --seeds 1 --jobs 1 --output-dir {tmp_path}"
    assert command(["low-shot", *words.split(), *options.split()]) == 0
    document = (tmp_path / "low_shot.md").read_text()
    assert document in capsys.readouterr().out and "| REACT, ViT-B/16 " in document
    found = {(r["row"], r["column"]): r["accuracy"] for r in json.loads((tmp_path / "low_shot.json").read_text())}
    assert len(found) == 5 * (2 + 4)
    first = f"{workspace}/student.safetensors <- {workspace}/teacher.pt, 1-shot"
    (folder,) = tmp_path.glob("*1-shot/seed1")
    assert found[f"{first}, beta 0.5", "test"] == load_run(folder, {"TRAINER.DHO.BETA": 0.5}).test()
    assert f"| {first}, beta 0.5 minus {first} " in document
