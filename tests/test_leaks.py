"""Test images among those that a run learns from: found by path and by content, refused, or called by their name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import layouts
import pytest
import runs
import tiny

from dho_plugin import leaks
from dho_plugin.errors import UsageError
from dho_plugin.host import build_dataset
from dho_plugin.leaks import overlap
from dho_plugin.manifest import shared_images
from dho_plugin.pool import check_trainable, check_validation, copy_policy, unlabeled_paths

TRAIN, VAL = "imagenet/images/train", "imagenet/images/val"


@pytest.fixture
def root(workspace, tmp_path) -> Path:
    folder = tmp_path / "root"
    shutil.copytree(workspace, folder, ignore=shutil.ignore_patterns("boosting"))
    return folder


def image_for_test(root: Path, number: int = 0) -> Path:
    return root / VAL / tiny.WNIDS[number] / f"{tiny.WNIDS[number]}_0.JPEG"


def copy(root: Path) -> Path:
    return Path(shutil.copy(image_for_test(root), root / TRAIN / tiny.WNIDS[0] / "copy.JPEG"))


def link(root: Path) -> Path:
    path = root / TRAIN / tiny.WNIDS[0] / "link.JPEG"
    path.symlink_to(os.path.relpath(image_for_test(root), path.parent))
    return path


def linked_folder(root: Path) -> Path:
    shutil.rmtree(root / TRAIN / tiny.WNIDS[0])
    (root / TRAIN / tiny.WNIDS[0]).symlink_to(root / VAL / tiny.WNIDS[0])
    return root / TRAIN / tiny.WNIDS[0] / f"{tiny.WNIDS[0]}_0.JPEG"


def test_links_are_found_by_path_and_copies_by_content(root):
    test = [str(image_for_test(root, number)) for number in range(6)]
    others = sorted(map(str, (root / TRAIN).rglob("*.JPEG")))
    assert overlap(others, test) == []
    here, there = str(link(root)), str(copy(root))
    assert overlap([*others, here], test, content=False) == [(here, test[0])]
    assert overlap([*others, there], test, content=False) == []
    assert overlap([*others, there], test) == [(there, test[0])]
    assert overlap(test, [here, there]) == [(test[0], here), (test[0], there)]
    relative = os.path.relpath(test[0])
    assert overlap([relative], test, content=False) == [(relative, test[0])]
    folder = str(linked_folder(root))
    assert overlap([folder], test, content=False) == [(folder, test[0])]


def test_bytes_are_read_of_files_of_equal_size_alone_and_of_few(root, monkeypatch, capsys):
    test = [str(image_for_test(root, number)) for number in range(6)]
    (root / "long.JPEG").write_bytes(bytes(100_000))
    monkeypatch.setattr(leaks, "digest", lambda path: pytest.fail("read"))
    assert overlap([str(root / "long.JPEG")], test) == []
    monkeypatch.undo()
    there = str(copy(root))
    monkeypatch.setattr(leaks, "MAX_COMPARED", 6)
    assert overlap([there], test) == []
    leaks.check_apart([there], test, "unlabelled", "")
    assert "More than 6 unlabelled and test images: compared by path" in capsys.readouterr().out
    with pytest.raises(UsageError, match="1 unlabelled images are test images"):
        leaks.check_apart([str(link(root))], test, "unlabelled", "")


@pytest.mark.parametrize("leak", [copy, link, linked_folder])
@pytest.mark.parametrize("name", ["StudentDHO", "KD", "CasPL"])
def test_test_images_in_the_pool_stop_the_run_before_a_teacher_is_loaded(root, tmp_path, name, leak):
    leak(root)
    trainer = runs.make(root, name, tmp_path / "x", "", "TRAINER.DHO.UNLABELED_POOL union")
    # Labelled ones would be said first.
    trainer.dm.dataset._train_x = [item for item in trainer.dm.dataset.train_x if item.label]
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NUM_SHOTS = -1
    with pytest.raises(UsageError, match=r"unlabelled images are test images .*TRAINER.DHO.TRANSDUCTIVE"):
        trainer.train()
    assert not {"teacher", "senior"} & set(vars(trainer))


@pytest.mark.parametrize("leak", [copy, link, linked_folder])
def test_labelled_test_images_stop_every_trainer(root, tmp_path, leak):
    leak(root)
    options = "DATASET.NUM_SHOTS -1 TRAINER.DHO.TRANSDUCTIVE True"  # which is of unlabelled images alone
    with pytest.raises(UsageError, match=r"labelled images are test images .*remove them"):
        runs.run(root, "LinearProbe", tmp_path / "x", "", options)


def test_a_benchmarks_own_duplicates_are_let_pass_when_asked_for_and_are_not_distilled_on(root, tmp_path, capsys):
    trainer = runs.make(root, "LinearProbeDHO", tmp_path / "x")
    labeled, pool = trainer.dm.dataset.train_x[0].impath, trainer.unlabeled_paths()
    for path in (labeled, *pool[:2]):
        shutil.copy(image_for_test(root), path)
    with pytest.raises(UsageError, match=r"1 labelled images are test images .*DATASET.TEST_COPIES allow"):
        runs.run(root, "LinearProbeDHO", tmp_path / "a")
    row = runs.run(root, "LinearProbeDHO", tmp_path / "b", "", "DATASET.TEST_COPIES allow")
    assert list(row) == ["test"]
    out = capsys.readouterr().out
    assert "1 labelled images are copies of test images" in out
    assert "2 unlabelled images are copies of test images" in out
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["in_two_sets"]["labeled & test"] == 1 and manifest["in_two_sets"]["test & unlabeled"] == 0
    assert manifest["unlabeled"]["images"] == len(pool) - 2
    Path(pool[2]).unlink()
    Path(pool[2]).symlink_to(image_for_test(root, 1))  # the very file is none of the benchmark's doing
    with pytest.raises(UsageError, match="unlabelled images are test images"):
        runs.run(root, "LinearProbeDHO", tmp_path / "c", "", "DATASET.TEST_COPIES allow")


def test_published_splits_start_with_the_duplicates_that_they_have(workspace, tmp_path, capsys):
    """CoOp's split files are what they are, and every published number is of them."""
    layouts.write(tmp_path / "root", "DescribableTextures")
    line = f"--trainer LinearProbeDHO --dataset dtd --root {tmp_path / 'root'} --shots 1"
    cfg = runs.cli.build_config(runs.cli.parser().parse_args(line.split()))
    dataset = build_dataset(cfg)
    before = unlabeled_paths(cfg, dataset.train_x, dataset.test)
    test, val = dataset.test[0].impath, Path(dataset.val[0].impath)
    for copied in (dataset.train_x[0].impath, val, *before[:2]):
        shutil.copy(test, copied)
    check_trainable(dataset, final_model="best_val", copies=copy_policy(cfg))
    check_validation(dataset, "CHOOSE val", copies=copy_policy(cfg))
    pool = unlabeled_paths(cfg, dataset.train_x, dataset.test)
    assert pool == before[2:]
    out = capsys.readouterr().out
    assert "1 labelled images are copies of test images" in out
    assert "2 unlabelled images are copies of test images" in out
    cfg.defrost()
    cfg.DATASET.TEST_COPIES = "stop"
    with pytest.raises(UsageError, match="unlabelled images are test images"):
        unlabeled_paths(cfg, dataset.train_x, dataset.test)
    with pytest.raises(UsageError, match="nothing may be chosen on test"):
        check_validation(dataset, "CHOOSE val", copies=copy_policy(cfg))
    val.unlink()
    val.symlink_to(test)
    with pytest.raises(UsageError, match="nothing may be chosen on test"):
        check_validation(dataset, "CHOOSE val", copies="allow")


def test_labels_only_and_controls_need_no_pool(root, tmp_path):
    trainer = runs.make(root, "LinearProbe", tmp_path / "x")
    labeled = {item.impath for item in trainer.dm.dataset.train_x}
    free = next(path for path in sorted((root / TRAIN).rglob("*.JPEG")) if str(path) not in labeled)
    shutil.copy(image_for_test(root), free)
    runs.run(root, "LinearProbe", tmp_path / "a")
    runs.run(root, "LinearProbeDHO", tmp_path / "b", "--labels-only")
    with pytest.raises(UsageError, match="unlabelled images are test images"):
        runs.run(root, "LinearProbeDHO", tmp_path / "c")


def test_a_transductive_run_says_so_in_every_result(root, tmp_path, capsys):
    trainer = runs.make(root, "LinearProbeDHO", tmp_path / "x")
    shutil.copy(image_for_test(root), trainer.unlabeled_paths()[0])
    allowed = "TRAINER.DHO.TRANSDUCTIVE True"
    row = runs.run(root, "LinearProbeDHO", tmp_path / "a", "--ood", allowed)
    columns = ("test", "V2", "Sketch", "R", "A")
    assert list(row) == [f"{column} (transductive)" for column in columns]
    assert "TRANSDUCTIVE: 1 test images are among the unlabelled ones" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["transductive"] is True and manifest["results"] == row
    # What comes of it is called so as well: an evaluation, a student of it. With an oracle it is both.
    again = runs.run(root, "LinearProbeDHO", tmp_path / "b", f"--eval-only --model-dir {tmp_path / 'a'}")
    assert again == {"test (transductive)": row["test (transductive)"]}
    student = runs.run(root, "StudentDHO", tmp_path / "c", f"--labels-only --teacher {tmp_path / 'a'}")
    assert list(student) == ["test (transductive)"]
    both = runs.run(root, "LinearProbeDHO", tmp_path / "d", "", f"{allowed} TRAINER.DHO.CHOOSE oracle")
    assert list(both) == ["test (oracle, transductive)"]
    # The permission alone makes no run transductive.
    assert list(runs.run(root, "LinearProbeDHO", tmp_path / "e", "--labels-only", allowed)) == ["test"]


def test_a_stage_two_behind_transductive_prompts_is_transductive(root, tmp_path):
    trainer = runs.make(root, "CasPL", tmp_path / "x")
    shutil.copy(image_for_test(root), next(path for path in trainer.training_images()[0] if "_3" in path))
    row = runs.run(root, "CasPL", root / "boosting", "", "TRAINER.DHO.TRANSDUCTIVE True")
    assert list(row) == ["test (transductive)"]
    trainer = runs.make(root, "CoOpCasPL", tmp_path / "y")
    trainer.train()
    assert trainer.caveats() == ["transductive"]


def test_the_manifest_counts_what_stands_in_two_sets(root, tmp_path, capsys):
    """On ImageNet the validation images are the test images; here the others are given one image more each."""
    trainer = runs.make(root, "LinearProbe", tmp_path / "x")
    dataset = trainer.dm.dataset
    pool = unlabeled_paths(trainer.cfg, dataset.train_x)
    nothing = shared_images(dataset, pool)
    assert {pair: number for pair, number in nothing.items() if number} == {"test & validation": 12}
    assert "validation" not in capsys.readouterr().out
    dataset._test, dataset._val = dataset.test[:6], dataset.val[6:]
    shutil.copy(dataset.val[0].impath, dataset.train_x[0].impath)
    shutil.copy(dataset.val[0].impath, pool[0])
    shutil.copy(dataset.val[1].impath, pool[1])
    assert shared_images(dataset, pool) == {
        "labeled & validation": 1,
        "labeled & test": 0,
        "labeled & unlabeled": 1,
        "test & validation": 0,
        "unlabeled & validation": 2,
        "test & unlabeled": 0,
    }
    out = capsys.readouterr().out
    assert "1 validation images are among the labeled images too" in out
    assert "2 validation images are among the unlabeled images too" in out


def test_nothing_is_chosen_on_labelled_images(root, tmp_path):
    dataset = runs.make(root, "LinearProbe", tmp_path / "x").dm.dataset
    own = [item for item in dataset.test if item.impath.endswith("_1.JPEG")]
    dataset._test = [item for item in dataset.test if item not in own]
    dataset._val = own
    check_validation(dataset, "CHOOSE val")
    check_trainable(dataset, final_model="best_val")
    shutil.copy(own[0].impath, dataset.train_x[3].impath)
    with pytest.raises(UsageError, match="CHOOSE val: 1 validation images are labelled training images"):
        check_validation(dataset, "CHOOSE val")
    with pytest.raises(UsageError, match="best_val: 1 validation images are labelled training images"):
        check_trainable(dataset, final_model="best_val")
    shutil.copy(own[1].impath, dataset.test[0].impath)
    with pytest.raises(UsageError, match="choose the epoch on test images"):
        check_trainable(dataset, final_model="best_val")
