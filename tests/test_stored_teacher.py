"""A stored teacher teaches what a live one does, to the bit of its numbers, and looks at each view once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import runs
import torch

from dho_plugin.errors import UsageError
from dho_plugin.stored_teacher import needed
from dho_plugin.teachers import ZeroShotTeacher


def learned(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for part in trainer.learned().values() for p in part.parameters()]


def train(workspace: Path, name: str, folder: Path, options: str = "") -> list[torch.Tensor]:
    trainer = runs.make(workspace, name, folder, "", options)
    trainer.train()
    return learned(trainer)


@pytest.mark.parametrize(
    "name",
    ["LinearProbeDHO", "CoOpDHO", "VPTDHO", "PromptSRCDHO", "StudentDHO", "KD", "CEKD", "CEKDFeature", "SSKD", "CasPL"],
)
def test_a_live_and_a_stored_run_learn_the_same(workspace, tmp_path, name):
    live = train(workspace, name, tmp_path / "live")
    stored = train(workspace, name, tmp_path / "stored", f"STORE.DIR {tmp_path / 'store'}")
    for one, other in zip(live, stored, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def count_views(monkeypatch) -> list[int]:
    counted, features = [], ZeroShotTeacher.features
    monkeypatch.setattr(
        ZeroShotTeacher, "features", lambda self, images: counted.append(len(images)) or features(self, images)
    )
    return counted


def test_no_view_is_computed_twice(workspace, tmp_path, monkeypatch, capsys):
    counted = count_views(monkeypatch)
    options = f"STORE.DIR {tmp_path / 'store'}"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "", options)
    trainer.train()
    batches, steps = trainer.train_loader_x.batches, len(trainer.train_loader_x) * trainer.max_epoch
    views = {
        bytes(row.tolist())
        for step in range(steps)
        for row in torch.cat([batches[step]["view"], batches[step]["unlabeled"]["view"]])
    }
    assert sum(counted) == len(views) == len(trainer.teacher.store)
    train(workspace, "StudentDHO", tmp_path / "b", options)  # another student, the same seed: the same views
    assert sum(counted) == len(views)
    assert f"{len(views)} stored, 0 to be computed" in capsys.readouterr().out
    longer = runs.make(workspace, "LinearProbeDHO", tmp_path / "c", "", f"{options} OPTIM.MAX_EPOCH 3")
    longer.train()
    assert sum(counted) == len(longer.teacher.store) > len(views)


def test_few_views_come_round_and_are_another_run(workspace, tmp_path, monkeypatch):
    counted = count_views(monkeypatch)
    options = f"STORE.DIR {tmp_path / 'store'} STORE.VIEWS 1 OPTIM.MAX_EPOCH 4"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "", options)
    trainer.train()
    assert sum(counted) <= 24  # one of each of four images of six classes
    live = train(workspace, "LinearProbeDHO", tmp_path / "b", "STORE.VIEWS 1 OPTIM.MAX_EPOCH 4")
    for one, other in zip(learned(trainer), live, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match=r"STORE\.VIEWS"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "a", "", "STORE.VIEWS 2 OPTIM.MAX_EPOCH 4")


def test_a_filling_that_was_interrupted_goes_on(workspace, tmp_path, monkeypatch):
    counted, features = [], ZeroShotTeacher.features

    def stop(self, images):
        counted.append(len(images))
        if len(counted) == 2:
            raise KeyboardInterrupt
        return features(self, images)

    monkeypatch.setattr("dho_plugin.stored_teacher.BATCH", 5)
    monkeypatch.setattr(ZeroShotTeacher, "features", stop)
    options = f"STORE.DIR {tmp_path / 'store'}"
    with pytest.raises(KeyboardInterrupt):
        train(workspace, "LinearProbeDHO", tmp_path / "a", options)
    again = runs.make(workspace, "LinearProbeDHO", tmp_path / "b", "", options)
    again.train()
    assert sum(counted) == len(again.teacher.store) + 5  # the batch that was cut off


def test_all_views_of_a_run_are_known_before_it(workspace, tmp_path):
    source = runs.make(workspace, "LinearProbeDHO", tmp_path).train_loader_x.batches.unlabeled
    for views in (0, 1, 2):
        source.views = views
        for positions in (0, 1, 12, 13, 30):
            slow = {(source.order[i][0], source.view_pass(source.order[i][1])) for i in range(positions)}
            found = list(needed(source, positions))
            assert len(found) == len(set(found)) and set(found) == slow


def test_another_prompt_takes_the_same_features(workspace, tmp_path, monkeypatch):
    options = f"STORE.DIR {tmp_path / 'store'}"
    train(workspace, "LinearProbeDHO", tmp_path / "a", options)
    counted = count_views(monkeypatch)
    train(workspace, "LinearProbeDHO", tmp_path / "b", f"{options} TRAINER.DHO.TEACHER.TEMPLATES ['a_{{}}']")
    assert counted == []


def test_what_cannot_be_stored_is_refused(workspace, tmp_path, monkeypatch):
    options = f"STORE.DIR {tmp_path / 'store'}"
    runs.run(workspace, "LinearProbe", tmp_path / "probe")
    with pytest.raises(UsageError, match="finished run: leave it empty"):
        runs.run(workspace, "StudentDHO", tmp_path / "a", f"--teacher {tmp_path / 'probe'}", options)
    with pytest.raises(UsageError, match=r"leave INPUT\.BAD_IMAGES at stop"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "b", "", f"{options} INPUT.BAD_IMAGES skip")
    with pytest.raises(UsageError, match=r"STORE\.VIEWS -1"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "c", "", "STORE.VIEWS -1")
    monkeypatch.setattr("dho_plugin.stored_teacher.shutil.disk_usage", lambda path: type("D", (), {"free": 10}))
    with pytest.raises(UsageError, match=r"need .* GiB in .*fewer views \(STORE.VIEWS\)"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "d", "", options)


def test_views_that_come_again_are_called_a_deviation(workspace, tmp_path, capsys):
    words = runs.words(workspace, "LinearProbeDHO", tmp_path / "a", "--explain", "STORE.VIEWS 3")
    assert runs.cli.main(words) == 0
    assert "3 of an image and then these again (a deviation)" in capsys.readouterr().out
    runs.make(workspace, "LinearProbe", tmp_path / "b", "", "STORE.VIEWS 3").train()
    assert "STORE.VIEWS: 3 views of an image, then these again" in capsys.readouterr().out


def test_the_manifest_knows_the_stored_teacher(workspace, tmp_path):
    runs.run(workspace, "LinearProbeDHO", tmp_path / "a")
    runs.run(workspace, "LinearProbeDHO", tmp_path / "b", "", f"STORE.DIR {tmp_path / 'store'}")
    teachers = [json.loads((tmp_path / run / "manifest.json").read_text())["teacher"] for run in "ab"]
    assert teachers[0] == teachers[1]
