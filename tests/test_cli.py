from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from dho_plugin import cli
from dho_plugin.config import CONFIGS, merge_file, merge_options
from dho_plugin.errors import UsageError
from dho_plugin.host import DATASET_REGISTRY, TRAINER_REGISTRY, get_cfg_default

REPOSITORY = Path(__file__).resolve().parent.parent


def config(line: str):
    return cli.build_config(cli.parser().parse_args(line.split()))


def test_a_whole_run_from_the_command_line(workspace, tmp_path):
    """In a process of its own, in another folder, with a terminal's environment."""
    command = [
        sys.executable,
        str(REPOSITORY / "train.py"),
        *runs.words(workspace, "CoOpDHO", tmp_path / "out", "--ood"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    header, numbers = done.stdout.splitlines()[-3:-1]
    assert header.split() == ["test", "V2", "Sketch", "R", "A"]
    log = tmp_path / "out" / "log.txt"
    for signal in ("Finish training", "Finished training"):
        assert runs.read_results(log, signal) == [float(numbers.split()[0])]
    for column, number in zip(header.split()[1:], numbers.split()[1:], strict=True):
        shift_log = tmp_path / "out" / "shifts" / column / "log.txt"
        assert runs.read_results(shift_log, "=> result") == [float(number)]
    assert re.search(r"epoch \[2/2\] batch \[3/3\] time .* data .* loss .* acc .* lr .* eta ", log.read_text())


def test_mistakes_exit_with_2_and_one_line(workspace, tmp_path, capsys):
    assert cli.main(runs.words(workspace, "CoOpDH", tmp_path)) == 2
    assert capsys.readouterr().err.startswith("error: unknown trainer 'CoOpDH'")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--trainer CoOpDOH --dataset shapes", "Did you mean 'CoOpDHO'"),
        ("--trainer CoOp --dataset imagnet", "Did you mean 'imagenet'"),
        ("--trainer CoOp", "no dataset"),
        ("--trainer CoOp --dataset imagenet", "no --root"),
        ("--trainer CoOp --dataset shapes TRAINER.DHO.LAMDA 1", "Did you mean 'TRAINER.DHO.LAMBDA'"),
        ("--trainer CoOp --dataset shapes TRAINER.DHO.LAMBDA", "KEY VALUE pairs"),
        ("--trainer CoOp --dataset shapes TRAINER.DHO.LAMBDA half", "TRAINER.DHO.LAMBDA half"),
        ("--trainer CoOp --dataset shapes --config-file nowhere.yaml", "nowhere.yaml"),
        ("--trainer CoOp --dataset shapes DATASET.NAME Shaper", "Did you mean 'Shapes"),
        ("--trainer CoOp --dataset shapes --eval-only", "--model-dir"),
        ("--trainer CoOp --dataset imagenet_r --root x --ood", "no shifted test sets"),
        ("--trainer CoOp --dataset shapes --ood DATASET.SUBSAMPLE_CLASSES base", "all classes"),
    ],
)
def test_mistakes_are_named_with_the_nearest_right_word(line, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        config(line)


@pytest.mark.parametrize("flags", ["", "--eval-only --model-dir none"])
@pytest.mark.parametrize("place", ["file", "file/out", "a" * 300])
def test_an_output_folder_that_cannot_be_is_said_and_nothing_is_started(
    workspace, tmp_path, monkeypatch, capsys, place, flags
):
    monkeypatch.setattr(cli, "build_trainer", lambda cfg: pytest.fail("too late"))
    (tmp_path / "file").write_text("mine")
    assert cli.main(runs.words(workspace, "CoOp", tmp_path / place, flags)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot use {tmp_path / place} (") and said.count("\n") == 1
    assert "choose an output folder that can be read and written" in said
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_line_whoever_meets_it(workspace, tmp_path, monkeypatch, capsys):
    """TensorBoard's writer, for one."""
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(cli, "_main", lambda args: (_ for _ in ()).throw(error))
    assert cli.main(runs.words(workspace, "CoOp", tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: [Errno 28] No space left on device; what was saved") and said.count("\n") == 1
    error.errno = errno.EIO
    with pytest.raises(OSError, match="No space"):
        cli.main(runs.words(workspace, "CoOp", tmp_path))


def test_a_missing_folder_is_said_with_what_is_there(tmp_path):
    (tmp_path / "caltech-101").mkdir()
    with pytest.raises(UsageError, match=r"missing folder .*imagenet.*caltech-101"):
        cfg = config(f"--trainer CoOp --dataset imagenet --root {tmp_path}")
        DATASET_REGISTRY.get("ImageNet")(cfg)


def test_a_model_that_cannot_be_found_is_said_before_the_data_is_read(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "build_trainer", lambda cfg: pytest.fail("too late"))
    for flag in ("--backbone", "--teacher"):
        with pytest.raises(UsageError, match="Did you mean 'ViT-L/14@336px'"):
            runs.run(workspace, "CoOpDHO", tmp_path, f"{flag} ViT-L/14@336")


def test_precedence_is_defaults_dataset_trainer_flags_options(tmp_path):
    (tmp_path / "d.yaml").write_text("DATASET:\n  NAME: Shapes\nSEED: 7\nOPTIM:\n  LR: 1.0\n  MAX_EPOCH: 3\n")
    (tmp_path / "t.yaml").write_text(
        "OPTIM:\n  LR: 2.0\nDATASET:\n  NUM_SHOTS: 4\nMODEL:\n  BACKBONE:\n    NAME: RN50\n"
    )
    base = f"--trainer CoOp --dataset-config-file {tmp_path}/d.yaml --config-file {tmp_path}/t.yaml"
    cfg = config(base)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR, cfg.DATASET.NUM_SHOTS, cfg.SEED) == (3, 2.0, 4, 1)
    cfg = config(f"{base} --shots 8 --backbone RN101 DATASET.NUM_SHOTS 2 OPTIM.LR 3.0")
    assert (cfg.OPTIM.LR, cfg.DATASET.NUM_SHOTS, cfg.MODEL.BACKBONE.NAME) == (3.0, 2, "RN101")


def test_a_method_and_its_dho_trainer_share_their_file():
    for dataset, file in (("shapes", "shapes"), ("imagenet", "vit_b16_ep50")):
        files = {
            cli.trainer_file(cli.parser().parse_args(["--trainer", t, "--dataset", dataset]))
            for t in ("CoOp", "CoOpDHO")
        }
        assert files == {CONFIGS / "trainers" / "CoOp" / f"{file}.yaml"}


def test_a_folder_that_looks_like_a_number():
    assert config("--trainer CoOp --dataset shapes --output-dir 2024").OUTPUT_DIR == "2024"


def test_an_output_folder_among_the_options_is_kept():
    assert config("--trainer CoOp --dataset shapes OUTPUT_DIR somewhere").OUTPUT_DIR == "somewhere"


def test_coops_scripts_find_the_shared_file_under_the_dho_trainers_name(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    line = "--trainer CoOpDHO --dataset shapes --config-file configs/trainers/CoOpDHO/rn50_ep100.yaml"
    assert config(line).MODEL.BACKBONE.NAME == "RN50"


def test_a_wrong_type_in_a_yaml_file_is_said(tmp_path):
    (tmp_path / "t.yaml").write_text("OPTIM:\n  MAX_EPOCH: many\n")
    with pytest.raises(UsageError, match=r"t\.yaml"):
        config(f"--trainer CoOp --dataset shapes --config-file {tmp_path}/t.yaml")


def test_a_home_folder_as_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cfg = config("--trainer CoOp --dataset shapes --root ~/data --shots 1")
    assert len(DATASET_REGISTRY.get("Shapes")(cfg).train_x) == 32
    assert (tmp_path / "data" / "shapes").is_dir() and not (tmp_path / "~").exists()


def test_output_folders_follow_coop():
    cfg = config("--trainer CoOpDHO --dataset imagenet --root x --shots 16 --seed 2")
    assert cfg.OUTPUT_DIR == "output/imagenet/CoOpDHO/vit_b16_ep50_16shots/nctx16_cscFalse_ctpend/seed2"
    cfg = config(
        "--trainer LinearProbeDHO --dataset imagenet --root x --labels-only --shots 1 --eval-only --model-dir y"
    )
    assert cfg.OUTPUT_DIR == "output/evaluation/imagenet/LinearProbeDHO/vit_b16_ep20_1shots_labels/seed1"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_yaml_file_merges_and_names_what_is_registered(path):
    cfg = get_cfg_default()
    merge_file(cfg, path)
    if path.parent.name == "datasets":
        assert cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
    elif path.parent.name != "presets":
        names = TRAINER_REGISTRY.registered_names()
        assert path.parent.name in {*names, *(getattr(TRAINER_REGISTRY.get(name), "family", "") for name in names)}


def test_yaml_tags_are_refused(tmp_path):
    (tmp_path / "evil.yaml").write_text("SEED: !!python/object/apply:os.system ['touch canary']\n")
    with pytest.raises(UsageError, match="not valid yaml"):
        merge_file(get_cfg_default(), tmp_path / "evil.yaml")
    assert not Path("canary").exists()


def test_options_keep_their_type():
    cfg = get_cfg_default()
    merge_options(
        cfg, ["DATASET.NUM_SHOTS", "4", "TRAINER.COOP.CSC", "True", "TRAINER.DHO.TEACHER.TEMPLATES", "['a {}.']"]
    )
    assert (cfg.DATASET.NUM_SHOTS, cfg.TRAINER.COOP.CSC, cfg.TRAINER.DHO.TEACHER.TEMPLATES) == (4, True, ("a {}.",))
