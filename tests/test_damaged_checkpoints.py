"""Going on from checkpoints of which some are damaged: all parts from the newest epoch that is whole in all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import runs

from dho_plugin import saved
from dho_plugin.errors import UsageError
from dho_plugin.host import save_checkpoint
from dho_plugin.saved import best_so_far, prepare_resume

PARTS = ["prompt_learner", "kd_head"]


@pytest.fixture(scope="module")
def cfg(workspace, tmp_path_factory):
    return runs.make(workspace, "CoOpDHO", tmp_path_factory.mktemp("run")).cfg.clone()


@pytest.fixture
def run(cfg, tmp_path):
    """The output folder of a run that has saved three epochs, and its configuration."""
    cfg.defrost()
    cfg.OUTPUT_DIR = str(tmp_path)
    for part in PARTS:
        for epoch in (1, 2, 3):
            save_checkpoint({"state_dict": {}, "epoch": epoch, "val_result": 50.0}, tmp_path / part)
    return tmp_path


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def pointers(run: Path) -> list[str]:
    return [(run / part / "checkpoint").read_text().strip() for part in PARTS]


@pytest.mark.parametrize("damage", [flip, cut, lambda file: file.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("part", PARTS)
def test_the_newest_is_named_and_the_one_before_is_used_for_all(cfg, run, capsys, damage, part):
    damage(run / part / "model.pth.tar-3")
    (run / part / "model.pth.tar-9.host-1.tmp").touch()  # of a killed writer
    for name in PARTS:
        (run / name / "model.pth.tar-7.converted").touch()
    capsys.readouterr()
    prepare_resume(cfg, PARTS)
    said = capsys.readouterr().out
    assert "tar-7" not in said and "tar-9" not in said
    assert f"{part}/model.pth.tar-3" in said and said.endswith("; going on from epoch 2\n") and said.count("\n") == 1
    assert pointers(run) == ["model.pth.tar-2"] * 2
    prepare_resume(cfg, PARTS)
    assert capsys.readouterr().out == ""


def test_an_epoch_is_whole_in_all_parts_or_not_used(cfg, run, capsys):
    flip(run / PARTS[0] / "model.pth.tar-3")
    flip(run / PARTS[1] / "model.pth.tar-2")
    capsys.readouterr()
    prepare_resume(cfg, PARTS)
    said = capsys.readouterr().out
    assert all(name in said for name in (f"{PARTS[0]}/model.pth.tar-3", f"{PARTS[1]}/model.pth.tar-2"))
    assert pointers(run) == ["model.pth.tar-1"] * 2


def test_none_whole_is_an_error(cfg, run):
    for epoch in (1, 2, 3):
        flip(run / PARTS[epoch % 2] / f"model.pth.tar-{epoch}")
    with pytest.raises(UsageError, match=r"tar-3.*tar-1.* no epoch is whole in all of .*kd_head"):
        prepare_resume(cfg, PARTS)
    assert pointers(run) == ["model.pth.tar-3"] * 2


def test_best_models_of_different_epochs_are_not_one(cfg, run, capsys):
    """As after a kill between the writing of two of them; both pointers then have the same name."""
    for part, epoch in zip(PARTS, (4, 3), strict=True):
        save_checkpoint({"state_dict": {}, "epoch": epoch}, run / part, model_name="model-best.pth.tar")
    prepare_resume(cfg, PARTS)
    assert "of different epochs ([3, 4]); going on from epoch 3" in capsys.readouterr().out
    assert pointers(run) == ["model.pth.tar-3"] * 2


def test_a_pointer_is_written_whole(cfg, run, monkeypatch):
    written = []
    monkeypatch.setattr(saved, "write_whole", lambda path, text: written.append((path.parent.name, text)))
    flip(run / PARTS[0] / "model.pth.tar-3")
    prepare_resume(cfg, PARTS)
    assert written == [(part, "model.pth.tar-2\n") for part in PARTS]


def test_a_damaged_best_model_is_named_and_forgotten(cfg, run, capsys):
    save_checkpoint({"state_dict": {}, "epoch": 3, "val_result": 70.0}, run / PARTS[0], model_name="model-best.pth.tar")
    assert best_so_far(cfg, PARTS) == 70
    cut(run / PARTS[0] / "model-best.pth.tar")
    assert best_so_far(cfg, PARTS) is None
    assert "model-best.pth.tar" in capsys.readouterr().out


def test_a_run_without_states_goes_on_from_the_epoch_before(workspace, tmp_path, capsys):
    options = "OPTIM.MAX_EPOCH 3 TRAIN.CHECKPOINT_FREQ 1 TEST.NO_TEST True"
    runs.make(workspace, "LinearProbe", tmp_path / "one", "", options).train()
    expected = (tmp_path / "one/ce_head/model-3.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "one" / "state")
    flip(tmp_path / "one/ce_head/model.pth.tar-3")
    (tmp_path / "one/ce_head/model-3.safetensors").unlink()
    trainer = runs.make(workspace, "LinearProbe", tmp_path / "one", "", options)
    trainer.train()
    assert "going on from epoch 2" in capsys.readouterr().out and trainer.start_epoch == 2
    assert (tmp_path / "one/ce_head/model-3.safetensors").read_bytes() == expected
