"""manifest.json: what a run learned from, how and what came out; and names that cannot pass for a result in a log."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import test_attach
import tiny
import torch

from dho_plugin import cli, manifest
from dho_plugin.embedded.evaluation import Classification
from dho_plugin.errors import UsageError
from dho_plugin.host import get_cfg_default
from dho_plugin.manifest import images_part
from dho_plugin.pool import check_shots
from dho_plugin.predicting import printable, write_text

FAKE = "ash\n* accuracy: 99.9%"


def read(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def slow_part(root: Path, images: list[tuple[str, int]]) -> dict:
    lines = sorted(f"{Path(path).relative_to(root).as_posix()} {label}" for path, label in images)
    return {"images": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_protocol_of_a_run(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--shots", "2"])
    row = runs.run(workspace, "StudentDHO", tmp_path / "a", "--ood", "TRAINER.DHO.ALPHA 0.7 TRAINER.DHO.BETA 2.0")
    found = read(tmp_path / "a")
    trainer = runs.make(workspace, "StudentDHO", tmp_path / "b")
    dataset = trainer.dm.dataset
    test = slow_part(workspace, [(item.impath, item.label) for item in dataset.test])
    assert found["labeled"] == slow_part(workspace, [(item.impath, item.label) for item in dataset.train_x])
    assert found["unlabeled"] == slow_part(workspace, [(path, -1) for path in trainer.unlabeled_paths()])
    assert found["validation"] == {**test, "a_class": [2, 2], "is_the_test_set": True, "protocol": "test"}
    assert found["test"] == test and found["test"]["images"] == 12
    assert found["interpolation"] == {"alpha": 0.7, "beta": 2.0, "chosen": "fixed"}
    assert found["student"]["weights_sha256"] == sha256(workspace / "student.safetensors")
    assert found["teacher"]["weights_sha256"] == sha256(workspace / "teacher.pt")
    prompts = json.dumps([["a photo of a {}."], tiny.NAMES])
    assert found["teacher"]["prompts_sha256"] == hashlib.sha256(prompts.encode()).hexdigest()
    assert found["versions"]["python"] == sys.version.split()[0] and found["versions"]["torch"]
    assert (found["view_seed"], found["host"], found["transductive"]) == (1, cli.HOST, False)
    assert found["started"]["command"] == ["train.py", "--shots", "2"] and found["resumed"] == []
    assert found["started"]["time"] <= found["finished"]
    assert found["results"] == row and list(row) == ["test", "V2", "Sketch", "R", "A"]
    runs.run(workspace, "LinearProbe", tmp_path / "c")
    control = read(tmp_path / "c")
    assert (control["teacher"], control["interpolation"], control["unlabeled"]["images"]) == (None, None, 0)


def test_it_is_there_while_the_run_learns_and_keeps_its_start(workspace, tmp_path, monkeypatch):
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path)
    step = trainer.forward_backward

    def stop(batch):
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        return step(batch)

    trainer.forward_backward = stop
    trainer.cfg.defrost()
    trainer.cfg.TRAIN.CHECKPOINT_FREQ = 1
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    began = read(tmp_path)
    assert (began["finished"], began["results"], began["interpolation"]) == (None, None, None)
    monkeypatch.setattr(sys, "argv", ["again"])
    row = runs.run(workspace, "LinearProbeDHO", tmp_path)
    ended = read(tmp_path)
    assert ended["started"] == began["started"] and [one["command"] for one in ended["resumed"]] == [["again"]]
    assert ended["results"] == row and ended["finished"]
    assert not list(tmp_path.glob("manifest.json.*"))


def test_it_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    manifest.write(tmp_path, {"a": 1})
    original = Path.write_text

    def full(path, text, **keywords):
        original(path, text[:5], **keywords)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        manifest.write(tmp_path, {"a": 2})
    assert read(tmp_path) == {"a": 1} and [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_who_chose_alpha_and_beta(workspace, tmp_path):
    row = runs.run(workspace, "LinearProbeDHO", tmp_path / "a", "", "TRAINER.DHO.CHOOSE oracle")
    found = read(tmp_path / "a")
    assert found["interpolation"]["chosen"] == "oracle" and found["results"] == row
    assert list(row) == ["test (oracle)"]
    runs.run(workspace, "TipAdapter", tmp_path / "b", "", "TRAINER.TIPADAPTER.CHOOSE fixed TRAINER.TIPADAPTER.BETA 3.0")
    assert read(tmp_path / "b")["interpolation"] == {"alpha": 1.0, "beta": 3.0, "chosen": "fixed"}
    runs.run(workspace, "SSKD", tmp_path / "c")
    assert read(tmp_path / "c")["interpolation"] is None  # its CE head answers alone


def test_a_run_as_teacher_and_a_senior(workspace, tmp_path):
    runs.run(workspace, "LinearProbe", tmp_path / "a")
    runs.run(workspace, "StudentDHO", tmp_path / "b", f"--teacher {tmp_path / 'a'}")
    there = read(tmp_path / "a")["labeled"]
    assert read(tmp_path / "b")["teacher"] == {"run": str(tmp_path / "a"), "labeled": there, "transductive": False}
    senior = read(runs.boosting(workspace))
    assert senior["teacher"]["weights_sha256"] == sha256(workspace / "teacher.pt")
    assert senior["unlabeled"]["images"] == 24  # the union, none of which shows its label


def test_other_prompts_or_another_order_of_classes_are_another_hash():
    digests = {
        manifest.prompts_digest(templates, names)
        for templates in (["a {}."], ["a {}.", "the {}."], ["a {}"])
        for names in (["ash", "birch"], ["birch", "ash"])
    }
    assert len(digests) == 6


def test_an_attached_trainer_leaves_one_too(workspace, tmp_path):
    trainer = test_attach.make(workspace, "LogitsHostDHO", tmp_path)
    trainer.train()
    found = read(tmp_path)
    assert found["labeled"]["images"] == found["unlabeled"]["images"] == 12
    assert found["teacher"]["weights_sha256"] == sha256(workspace / "teacher.pt")
    assert found["interpolation"]["chosen"] == "fixed" and found["finished"]
    assert found["results"] == {"test": trainer.kd_result}


def test_a_file_that_was_passed_over_is_named(workspace, tmp_path):
    shutil.copytree(workspace / "imagenet", tmp_path / "root" / "imagenet")
    probe = f"--root {tmp_path / 'root'}"
    bad = runs.make(workspace, "LinearProbeDHO", tmp_path / "x", probe).unlabeled_paths()[0]
    Path(bad).write_bytes(b"")
    options = "INPUT.BAD_IMAGES skip TRAINER.DHO.STEPS_PER_EPOCH 6"
    runs.run(workspace, "LinearProbeDHO", tmp_path / "a", probe, options)
    assert read(tmp_path / "a")["skipped"] == [bad]


def test_paths_below_the_root_in_any_spelling_and_encoding(tmp_path):
    root = tmp_path / "root"
    plain = images_part([(f"{root}/a/x.png", 1)], str(root))
    assert plain == slow_part(root, [(f"{root}/a/x.png", 1)])
    assert plain == images_part([(f"{root}//a/./x.png", 1)], str(root))
    assert plain == images_part([("/elsewhere/a/x.png", 1)], "/elsewhere")
    assert plain != images_part([(f"{root}/a/x.png", 2)], str(root))
    assert images_part([(f"{root}/\udcff.png", 1)], str(root))["images"] == 1  # no UTF-8 on disk


# Names and paths in logs


def test_printable():
    assert printable("blåbär 木 a\u0308") == "blåbär 木 a\u0308"
    assert printable("a\nb\tc\x1b[2K\u2028\x85\udcff") == r"a\nb\tc\x1b[2K\u2028\x85\udcff"
    assert printable(printable(FAKE)) == printable(FAKE)


def test_a_class_name_cannot_pass_for_a_result(tmp_path, capsys):
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = Classification(cfg, lab2cname={0: FAKE, 1: "birch"})
    evaluator.process(torch.eye(2), torch.tensor([0, 1]))
    evaluator.evaluate()
    config = {"classes": {"ids": [FAKE, "b"], "names": [FAKE, "b"]}}
    record = {"image": f"x{FAKE}.png", "top": [{"id": FAKE, "name": FAKE, "probability": 0.5}]}
    write_text([record], sys.stdout, config, explain=False)
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("* accuracy: 99.9")]
    with pytest.raises(UsageError) as error:
        check_shots([], 1, {0: FAKE})
    assert "\n" not in str(error.value)


def test_a_class_folder_cannot_pass_for_a_result(workspace, tmp_path):
    """Through a whole run, whichever host prints."""
    data = tmp_path / "data"
    for number, name in enumerate((FAKE, "birch")):
        for split in ("labeled", "test"):
            for i in range(3):
                rng = np.random.default_rng(10 * number + i + 100 * (split == "test"))
                tiny.write_image(data / split / name.replace("_", " ") / f"{i}{FAKE}.jpg", rng, number)
    words = ["--trainer", "LinearProbe", "--data", str(data), "--output-dir", str(tmp_path / "out")]
    words += f"--backbone {workspace}/student.safetensors {runs.OPTIONS} {runs.PRECISION}".split()
    train = str(Path(cli.__file__).parent.parent / "train.py")  # in a process of its own: Dassl's logger keeps stdout
    subprocess.run([sys.executable, train, *words, "TEST.PER_CLASS_RESULT", "True"], check=True, capture_output=True)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert r"ash\n* accuracy: 99.9%" in log and "* accuracy" in log
    assert not [line for line in log.splitlines() if line.startswith("* accuracy: 99.9")]


def test_a_setting_cannot_pass_for_a_result():
    base = ["--trainer", "CoOp", "--dataset", "shapes"]
    with pytest.raises(UsageError, match=r"OUTPUT_DIR 'out\\n\* accuracy.*control character"):
        cli.build_config(cli.parser().parse_args([*base, "--output-dir", "out\n* accuracy: 99%"]))
    with pytest.raises(UsageError, match=r"TEACHER.TEMPLATES .*control character"):
        cli.build_config(cli.parser().parse_args([*base, "TRAINER.DHO.TEACHER.TEMPLATES", "('a {}', 'b\\r {}')"]))


def test_a_run_does_not_go_on_with_other_images(workspace, tmp_path):
    there = tmp_path / "moved"
    shutil.copytree(workspace, there, ignore=shutil.ignore_patterns("boosting"))
    runs.run(there, "LinearProbeDHO", tmp_path / "a")
    shutil.copytree(there, tmp_path / "elsewhere")
    models = f"--backbone {there}/student.safetensors --teacher {there}/teacher.pt"
    runs.run(tmp_path / "elsewhere", "LinearProbeDHO", tmp_path / "a", models)  # the same images
    labeled = json.loads((tmp_path / "a" / "split.json").read_text())["labeled"]
    unlabeled = [file for file in sorted((there / "imagenet/images/train").rglob("*.JPEG")) if file.is_file()]
    unlabeled = [file for file in unlabeled if file.relative_to(there).as_posix() not in {row[0] for row in labeled}]
    unlabeled[0].unlink()
    with pytest.raises(UsageError, match="of now are others"):
        runs.run(there, "LinearProbeDHO", tmp_path / "a")
    runs.run(there, "LinearProbeDHO", tmp_path / "a", "--resume-force")


def test_half_a_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"labeled": ')
    with pytest.raises(UsageError, match=r"manifest\.json is no manifest"):
        manifest.read(tmp_path)
