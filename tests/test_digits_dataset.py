"""scikit-learn's digits as data sets: the pictures, the split, the labels that teachers read, and a run."""

from __future__ import annotations

import builtins
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dho_plugin import cli
from dho_plugin.classes import class_list
from dho_plugin.datasets.digits import CONFUSIONS, NAMES, build_digits, spoiled
from dho_plugin.errors import UsageError
from dho_plugin.host import DATASET_REGISTRY, get_cfg_default
from dho_plugin.pool import check_trainable, unlabeled_paths

datasets = pytest.importorskip("sklearn.datasets")
TEACHERS = ("DigitsClean", "DigitsNoisy", "DigitsConfused")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    build_digits(root)
    return root


def dataset(root: Path, name: str, shots: int = -1):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = name, str(root), shots
    return DATASET_REGISTRY.get(name)(cfg)


def number(item) -> int:
    return int(Path(item.impath).stem)


def test_every_scan_is_there_once_pixel_for_pixel(root):
    digits, teacher = dataset(root, "Digits"), dataset(root, "DigitsClean")
    items = [*digits.train_x, *digits.val, *digits.test, *teacher.train_x]
    assert [len(s) for s in (digits.train_x, digits.val, digits.test, teacher.train_x)] == [700, 100, 497, 500]
    scans = datasets.load_digits()
    assert sorted(map(number, items)) == list(range(1797))
    for item in items:
        image = Image.open(item.impath)
        assert image.mode == "L"
        # 16 levels of grey on 255: exact again when divided
        np.testing.assert_array_equal(np.round(np.asarray(image) / 255 * 16), scans.images[number(item)])
        assert item.label == scans.target[number(item)] and item.classname == NAMES[item.label]


def test_all_share_classes_and_test_images(root):
    digits = dataset(root, "Digits")
    assert class_list(digits).ids == tuple("0123456789") and class_list(digits).names == NAMES
    for name in TEACHERS:
        teacher = dataset(root, name)
        assert class_list(digits).rows(class_list(teacher)) is None
        assert [(i.impath, i.label) for i in teacher.test] == [(i.impath, i.label) for i in digits.test]
        assert not teacher.val
        with pytest.raises(UsageError, match="no validation images"):
            check_trainable(teacher, final_model="best_val")


def test_labels_wrong_at_random(root):
    """40 % get any digit: a tenth of them the right one, none preferred."""
    items, truth = dataset(root, "DigitsNoisy").train_x, datasets.load_digits().target
    wrong = [item for item in items if item.label != truth[number(item)]]
    assert 0.30 < len(wrong) / len(items) < 0.42
    assert max(Counter(item.label for item in wrong).values()) < len(wrong) / 4
    assert all(item.classname == NAMES[item.label] for item in items)
    labels = [spoiled(3, index, "noisy") for index in range(20_000)]
    assert labels.count(3) / 20_000 == pytest.approx(0.64, abs=0.02)
    assert all(labels.count(d) / 20_000 == pytest.approx(0.04, abs=0.01) for d in range(10) if d != 3)


def test_labels_wrong_systematically(root):
    truth = datasets.load_digits().target
    seen = Counter((int(truth[number(item)]), item.label) for item in dataset(root, "DigitsConfused").train_x)
    for digit in range(10):
        there = {label: count for (true, label), count in seen.items() if true == digit}
        assert set(there) == {digit, CONFUSIONS.get(digit, digit)}
        if digit in CONFUSIONS:
            assert 0.3 < there[digit] / sum(there.values()) < 0.7


def test_labels_depend_on_the_image_alone(root):
    for name in TEACHERS:
        everything = {item.impath: item.label for item in dataset(root, name).train_x}
        few = dataset(root, name, shots=4).train_x
        assert Counter(item.label for item in few) == dict.fromkeys(range(10), 4)
        assert all(everything[item.impath] == item.label for item in few)


def test_a_few_shots_leave_the_rest_unlabelled(root):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = "Digits", str(root), 2
    digits = DATASET_REGISTRY.get("Digits")(cfg)
    assert len(unlabeled_paths(cfg, digits.train_x)) == 680


def test_the_pictures_are_written_once_and_need_scikit_learn_only_then(root, tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "sklearn":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    build_digits(root)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        build_digits(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_root_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, trainer in (("digits", "StudentDHO"), ("digits_noisy", "CE")):
        cfg = cli.build_config(cli.parser().parse_args(["--trainer", trainer, "--dataset", name]))
        where, output = cfg.DATASET.ROOT, cfg.OUTPUT_DIR
        assert where == str(tmp_path / "dho_plugin")
        assert output == f"output/{name}/{trainer}/digits_all/seed1"


def test_a_teacher_learns_the_digits(root, tmp_path):
    """A third of the default steps; chance is 10 %."""
    line = f"--trainer CE --dataset digits_clean --root {root} --output-dir {tmp_path}/out OPTIM.MAX_EPOCH 4"
    args = cli.parser().parse_args(line.split())
    assert cli.run(cli.build_config(args), args)["test"] > 85
