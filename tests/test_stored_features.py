"""What frozen models say of views is computed once, and a run that reads it learns what a live one does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runs
import torch

from dho_plugin import precision
from dho_plugin.errors import UsageError
from dho_plugin.stored_features import StoredFeatures
from dho_plugin.towers import VLM
from dho_plugin.views import image_size, read_image


def learned(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for part in trainer.learned().values() for p in part.parameters()]


def train(workspace: Path, name: str, folder: Path, options: str = "") -> list[torch.Tensor]:
    trainer = runs.make(workspace, name, folder, "", options)
    trainer.train()
    return learned(trainer)


ROUNDING = 5e-6  # of parameters after 6 to 21 steps: up to 2e-6 on an EPYC, 1e-6 or nothing on other processors
LIVE = [
    *("LinearProbe", "LinearProbeDHO", "CoOp", "CoOpDHO", "PromptSRC", "PromptSRCDHO", "VPTDHO", "MaPLeDHO"),
    *("StudentDHO", "KD", "CEKD", "CEKDFeature", "SSKD", "CasPL", "CoOpCasPL", "PromptSRCCasPL", "TipAdapterF"),
]


@pytest.mark.parametrize("name", LIVE)
def test_a_live_and_a_stored_run_learn_the_same(workspace, tmp_path, name):
    # Features of a view are rounded otherwise in a batch of another size. AdamW makes whole steps of gradients that are
    # nothing but that rounding (an attention's key bias has no other), SGD does not.
    options = "TRAINER.TIPADAPTER.CHOOSE fixed OPTIM.NAME sgd "
    live = train(workspace, name, tmp_path / "live", options)
    stored = train(workspace, name, tmp_path / "stored", f"{options}STORE.DIR {tmp_path / 'store'}")
    for one, other in zip(live, stored, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", ["LinearProbeDHO", "CoOpDHO", "PromptSRCDHO", "VPTDHO"])
def test_as_many_views_as_epochs_are_the_live_run_for_twenty_steps(workspace, tmp_path, name):
    epochs = "OPTIM.MAX_EPOCH 7 "
    live = train(workspace, name, tmp_path / "live", epochs)
    options = f"{epochs}STORE.VIEWS 7 STORE.DIR {tmp_path / 'store'}"
    trainer = runs.make(workspace, name, tmp_path / "stored", "", options)
    trainer.train()
    batches = trainer.train_loader_x.batches
    for source, size in ((batches.labeled, batches.batch_size), (batches.unlabeled, batches.unlabeled_size)):
        assert 7 * len(trainer.train_loader_x) >= 20 and source.order[7 * len(trainer.train_loader_x) * size - 1][1] < 7
    for one, other in zip(live, learned(trainer), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("prec", ["amp", "bf16"])
def test_half_precision_is_stored_as_it_was_computed(workspace, tmp_path, monkeypatch, prec):
    monkeypatch.setattr(precision, "HALF_DEVICES", ("cpu",))
    options = runs.PRECISION.replace("fp32", prec) + " OPTIM.NAME sgd "
    live = train(workspace, "LinearProbeDHO", tmp_path / "live", options)
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "", f"{options}STORE.DIR {tmp_path / 'store'}")
    trainer.train()
    assert {trainer.stored.store.model.dtype, trainer.teacher.stored.store.model.dtype} == {"float16"}
    for one, other in zip(live, learned(trainer), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


class Looked:
    """How many views each frozen model looked at outside of a graph, by the end of its name."""

    def __init__(self, monkeypatch) -> None:
        self.views: dict[str, int] = {"student": 0, "teacher": 0}
        features = VLM.features

        def counted(vlm, images):
            self.views[Path(vlm.name).stem] += len(images)
            return features(vlm, images)

        monkeypatch.setattr(VLM, "features", counted)


def views_of(trainer, parts: tuple[str, ...] = ("labeled", "unlabeled")) -> int:
    """How many different views the run's steps show, by the slow way."""
    batches, seen = trainer.train_loader_x.batches, set()
    for part, size in (("labeled", batches.batch_size), ("unlabeled", batches.unlabeled_size)):
        source = getattr(batches, part)
        for position in range(len(trainer.train_loader_x) * trainer.max_epoch * size if part in parts else 0):
            index, pass_ = source.order[position]
            view = source.view(index, source.view_pass(pass_), *image_size(source.paths[index]))
            seen.add((Path(source.paths[index]).read_bytes(), view))
    return len(seen)


def test_no_view_is_computed_twice(workspace, tmp_path, monkeypatch, capsys):
    looked = Looked(monkeypatch)
    options = f"STORE.DIR {tmp_path / 'store'}"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "", options)
    trainer.train()
    views = views_of(trainer)
    assert looked.views == {"student": views, "teacher": views} and views == len(trainer.teacher.stored.store)
    train(workspace, "StudentDHO", tmp_path / "b", options)  # another student, the same seed: the same views
    train(workspace, "LinearProbeDHO", tmp_path / "c", f"{options} TRAINER.DHO.HEAD.KD linear")
    assert looked.views == {"student": views, "teacher": views}
    assert f"{views} views stored, 0 to be computed" in capsys.readouterr().out
    longer = runs.make(workspace, "LinearProbeDHO", tmp_path / "d", "", f"{options} OPTIM.MAX_EPOCH 3")
    longer.train()
    assert looked.views["teacher"] == views_of(longer) > views


def test_the_frozen_reference_is_of_labelled_images_alone(workspace, tmp_path, monkeypatch):
    looked = Looked(monkeypatch)
    trainer = runs.make(workspace, "PromptSRCDHO", tmp_path / "a", "", f"STORE.DIR {tmp_path / 'store'}")
    trainer.train()
    assert looked.views == {"student": views_of(trainer, ("labeled",)), "teacher": views_of(trainer)}
    with pytest.raises(IndexError):  # never another view's feature
        trainer.stored(trainer.train_loader_x.batches[0]["unlabeled"]["view"])


@pytest.mark.parametrize("free", [2**30, 0])
def test_a_view_that_the_run_did_not_ask_for_is_an_error(workspace, tmp_path, monkeypatch, free):
    monkeypatch.setattr("dho_plugin.stored_features.free_bytes", lambda device: free)
    options = f"STORE.DIR {tmp_path / 'store'} TRAINER.DHO.STEPS_PER_EPOCH 2"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "", options)
    trainer.before_train()
    source, size = trainer.train_loader_x.batches.unlabeled, trainer.train_loader_x.batches.unlabeled_size
    asked = len(trainer.train_loader_x) * trainer.max_epoch * size
    assert asked % len(source.paths)  # the last pass is cut short, and the order goes on in it
    assert trainer.stored(source.batch(asked - 1, 1)["view"]).shape == (1, trainer.vlm.width)
    with pytest.raises(IndexError):
        trainer.stored(source.batch(asked, 1)["view"])


def test_portions_of_views_are_put_together(workspace, tmp_path, monkeypatch):
    live = train(workspace, "LinearProbeDHO", tmp_path / "live")
    monkeypatch.setattr("dho_plugin.loaders.PORTION", 5)
    monkeypatch.setattr("dho_plugin.stored_features.PORTION", 3)
    stored = train(workspace, "LinearProbeDHO", tmp_path / "stored", f"STORE.DIR {tmp_path / 'store'}")
    for one, other in zip(live, stored, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_store_that_goes_while_it_is_filled_is_said(workspace, tmp_path, monkeypatch):
    lacking = StoredFeatures.lacking
    options = f"STORE.DIR {tmp_path / 'store'}"
    train(workspace, "LinearProbeDHO", tmp_path / "a", options)

    def gone(self, names):
        found = lacking(self, names)
        for file in self.store.folder.glob("*.views"):
            file.unlink()
        return found

    monkeypatch.setattr(StoredFeatures, "lacking", gone)
    with pytest.raises(UsageError, match="has lost views"):
        train(workspace, "LinearProbeDHO", tmp_path / "b", options)


def test_what_a_power_cut_has_taken_is_computed_again(workspace, tmp_path, monkeypatch, capsys):
    options = f"STORE.DIR {tmp_path / 'store'}"
    whole = train(workspace, "LinearProbeDHO", tmp_path / "a", options)
    looked = Looked(monkeypatch)
    for file in (tmp_path / "store").glob("*/*.features"):
        file.write_bytes(b"\0" * file.stat().st_size)
    capsys.readouterr()
    again = runs.make(workspace, "LinearProbeDHO", tmp_path / "b", "", options)
    again.train()
    assert looked.views == dict.fromkeys(("student", "teacher"), views_of(again))
    assert capsys.readouterr().out.count("are damaged, and computed again") == 2  # the models' blocks, each once
    for one, other in zip(whole, learned(again), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "keys"),
    [("LinearProbeDHO", set()), ("VPTDHO", {"img"}), ("PromptSRCDHO", {"img"}), ("StudentDHO", {"img"})],
)
def test_no_pixels_are_made_that_nobody_looks_at(workspace, tmp_path, monkeypatch, name, keys):
    trainer = runs.make(workspace, name, tmp_path / "a", "", f"STORE.DIR {tmp_path / 'store'}")
    trainer.before_train()
    opened = []
    monkeypatch.setattr("dho_plugin.readers.read_image", lambda path: opened.append(path) or read_image(path))
    batch = trainer.train_loader_x.batches[1]
    assert set(batch) == {"index", "view", "label", "domain", "unlabeled"} | keys
    assert set(batch["unlabeled"]) == {"index", "view"} | keys
    assert bool(opened) == bool(keys)


def test_features_beyond_memory_are_read_from_disk(workspace, tmp_path, monkeypatch):
    options = f"STORE.DIR {tmp_path / 'store'}"
    in_memory = train(workspace, "LinearProbeDHO", tmp_path / "a", options)
    monkeypatch.setattr("dho_plugin.stored_features.free_bytes", lambda device: 1000)
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "b", "", options)
    trainer.train()
    assert trainer.stored._table is None
    for one, other in zip(in_memory, learned(trainer), strict=True):
        assert torch.equal(one, other)


def test_a_student_that_is_its_own_teacher_is_stored_once(workspace, tmp_path, monkeypatch):
    looked = Looked(monkeypatch)
    student = str(workspace / "student.safetensors")
    trainer = runs.make(workspace, "CoOpDHO", tmp_path / "a", f"--teacher {student}", f"STORE.DIR {tmp_path / 'store'}")
    trainer.train()
    assert trainer.stored is trainer.teacher.stored and looked.views == {"student": views_of(trainer), "teacher": 0}


def test_where_nothing_stays_frozen_nothing_is_stored(workspace, tmp_path, capsys):
    train(workspace, "CE", tmp_path / "a", f"STORE.DIR {tmp_path / 'store'}")
    assert "no model that sees the training images stays as it is" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()


def test_few_views_come_round_and_are_another_run(workspace, tmp_path, monkeypatch):
    looked = Looked(monkeypatch)
    options = f"STORE.DIR {tmp_path / 'store'} STORE.VIEWS 1 OPTIM.MAX_EPOCH 4"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "", options)
    trainer.train()
    assert looked.views["teacher"] <= 24  # one of each of four images of six classes
    live = train(workspace, "LinearProbeDHO", tmp_path / "b", "STORE.VIEWS 1 OPTIM.MAX_EPOCH 4")
    for one, other in zip(learned(trainer), live, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match=r"STORE\.VIEWS"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "a", "", "STORE.VIEWS 2 OPTIM.MAX_EPOCH 4")


def test_a_filling_that_was_interrupted_goes_on(workspace, tmp_path, monkeypatch):
    looked, add = [], StoredFeatures.add

    def stop(self, names, images):
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(len(names))
        add(self, names, images)

    monkeypatch.setattr("dho_plugin.stored_features.BATCH", 5)
    monkeypatch.setattr(StoredFeatures, "add", stop)
    options = f"STORE.DIR {tmp_path / 'store'}"
    with pytest.raises(KeyboardInterrupt):
        train(workspace, "LinearProbeDHO", tmp_path / "a", options)
    assert looked == [5, 5, 5]
    monkeypatch.setattr(
        StoredFeatures, "add", lambda self, names, images: looked.append(len(names)) or add(self, names, images)
    )
    again = runs.make(workspace, "LinearProbeDHO", tmp_path / "b", "", options)
    again.train()
    assert sum(looked) == 2 * views_of(again)  # two models, each view once


def test_all_views_of_a_run_are_known_before_it(workspace, tmp_path):
    source = runs.make(workspace, "LinearProbeDHO", tmp_path).train_loader_x.batches.unlabeled
    for views in (0, 1, 2):
        source.views = views
        for positions in (0, 1, 12, 13, 30):
            slow = {(source.view_pass(source.order[i][1]), source.order[i][0]) for i in range(positions)}
            found = np.argwhere(source.needed(positions)).tolist()
            assert {tuple(pair) for pair in found} == slow


def test_another_prompt_takes_the_same_features(workspace, tmp_path, monkeypatch):
    options = f"STORE.DIR {tmp_path / 'store'}"
    train(workspace, "LinearProbeDHO", tmp_path / "a", options)
    looked = Looked(monkeypatch)
    train(workspace, "LinearProbeDHO", tmp_path / "b", f"{options} TRAINER.DHO.TEACHER.TEMPLATES ['a_{{}}']")
    assert looked.views == {"student": 0, "teacher": 0}


def test_labelled_images_may_have_views_of_their_own_number(workspace, tmp_path, monkeypatch, capsys):
    looked = Looked(monkeypatch)
    options = f"STORE.DIR {tmp_path / 'store'} STORE.LABELED_VIEWS 1 OPTIM.MAX_EPOCH 4"
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "", options)
    trainer.train()
    batches = trainer.train_loader_x.batches
    assert len(batches.labeled.numbers) == 1 < len(batches.unlabeled.numbers)
    assert views_of(trainer, ("labeled",)) <= len(batches.labels) and looked.views["teacher"] == views_of(trainer)
    said = capsys.readouterr().out
    assert "STORE: views of each labelled image: 1," in said and "each unlabelled" not in said


def test_what_cannot_be_stored_is_refused(workspace, tmp_path, monkeypatch):
    options = f"STORE.DIR {tmp_path / 'store'}"
    runs.run(workspace, "LinearProbe", tmp_path / "probe")
    with pytest.raises(UsageError, match="finished run: leave it empty"):
        runs.run(workspace, "StudentDHO", tmp_path / "a", f"--teacher {tmp_path / 'probe'}", options)
    with pytest.raises(UsageError, match=r"leave INPUT\.BAD_IMAGES at stop"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "b", "", f"{options} INPUT.BAD_IMAGES skip")
    with pytest.raises(UsageError, match=r"STORE\.LABELED_VIEWS -2.* -1 for as many as STORE\.VIEWS"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "c", "", "STORE.LABELED_VIEWS -2")
    with pytest.raises(UsageError, match=r"STORE\.VIEWS -1"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "c", "", "STORE.VIEWS -1")
    monkeypatch.setattr(
        "dho_plugin.stored_features.shutil.disk_usage", lambda path: type("D", (), {"free": 10, "total": 0})
    )
    with pytest.raises(UsageError, match=r"need .* GiB in .*fewer views \(STORE.VIEWS\)"):
        runs.run(workspace, "LinearProbeDHO", tmp_path / "d", "", options)


def test_views_that_come_again_are_called_a_deviation(workspace, tmp_path, capsys):
    words = runs.words(workspace, "LinearProbeDHO", tmp_path / "a", "--explain", "STORE.VIEWS 3")
    assert runs.cli.main(words) == 0
    assert "3 of each labelled image and then these again (a deviation)" in capsys.readouterr().out
    runs.make(workspace, "LinearProbe", tmp_path / "b", "", "STORE.VIEWS 3").train()
    assert "STORE: views of each labelled image: 3, then these again" in capsys.readouterr().out


def test_the_manifest_knows_the_stored_teacher(workspace, tmp_path):
    runs.run(workspace, "LinearProbeDHO", tmp_path / "a")
    runs.run(workspace, "LinearProbeDHO", tmp_path / "b", "", f"STORE.DIR {tmp_path / 'store'}")
    teachers = [json.loads((tmp_path / run / "manifest.json").read_text())["teacher"] for run in "ab"]
    assert teachers[0] == teachers[1]


def test_a_reader_with_other_pixels_has_features_of_its_own(workspace, tmp_path, monkeypatch):
    looked = Looked(monkeypatch)
    for reader, models in (("pil", 1), ("tensor", 2), ("cuda", 2)):  # without a GPU cuda gives tensor's pixels
        options = f"STORE.DIR {tmp_path / 'store'} INPUT.READER {reader}"
        trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / reader, "", options)
        trainer.train()
        assert looked.views["teacher"] == models * views_of(trainer)
