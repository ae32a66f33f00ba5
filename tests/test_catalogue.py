"""CoOp's ten further datasets: layouts, splits, few shots, base and new classes, and what a broken one says."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import layouts
import pytest

from dho_plugin import cli
from dho_plugin.classes import class_list
from dho_plugin.config import CONFIGS
from dho_plugin.datasets import CATALOGUE, CLASSES
from dho_plugin.errors import UsageError
from dho_plugin.host import DATASET_REGISTRY, set_random_seed
from dho_plugin.pool import check_validation, unlabeled_paths

NAMES = list(layouts.LAYOUTS)
YAML = {
    name: path.stem
    for path in (CONFIGS / "datasets").glob("*.yaml")
    for name in NAMES
    if f'"{name}"' in path.read_text(encoding="utf-8")
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ten")
    for name in NAMES:
        layouts.write(root, name)
    return root


@pytest.fixture
def copy(root, tmp_path):
    """Call with a dataset's name: a copy of its folder, below tmp_path."""
    folders = {name: layouts.LAYOUTS[name].folder for name in NAMES}
    return lambda name: Path(shutil.copytree(root / folders[name], tmp_path / folders[name]))


def build(root: Path, name: str, shots: int = -1, *options: str, seed: int = 1):
    line = f"--trainer CoOp --dataset {YAML[name]} --root {root} --shots {shots} --seed {seed}"
    cfg = cli.build_config(cli.parser().parse_args([*line.split(), *options]))
    set_random_seed(seed)
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg), cfg


def content(items) -> list[tuple[str, int, str]]:
    return [(item.impath, item.label, item.classname) for item in items]


def test_the_table_has_the_ten_with_coops_names():
    assert [described.name for described in CATALOGUE] == list(CLASSES) == NAMES
    assert set(YAML.values()) == {
        "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd",
        "eurosat", "ucf101",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_all_images_with_their_labels(root, name, capsys):
    dataset, _ = build(root, name)
    layout = layouts.LAYOUTS[name]
    assert class_list(dataset).names == class_list(dataset).ids == tuple(name for _, name in layout.classes)
    for split, items in {"train": dataset.train_x, "val": dataset.val, "test": dataset.test}.items():
        counts = Counter((item.label, item.classname) for item in items)
        assert counts == {(i, name): layouts.COUNTS[split] for i, (_, name) in enumerate(layout.classes)}
        assert all(Path(item.impath).is_file() for item in items)
    assert "results do not compare" in capsys.readouterr().out
    check_validation(dataset, "")  # its validation images are no test images


@pytest.mark.parametrize("name", NAMES)
def test_base_and_new_classes(root, name):
    names = [name for _, name in layouts.LAYOUTS[name].classes]
    half = (len(names) + 1) // 2
    for part, wanted in {"base": names[:half], "new": names[half:]}.items():
        dataset, _ = build(root, name, 2, "DATASET.SUBSAMPLE_CLASSES", part)
        assert dataset.classnames == wanted
        for items, count in ((dataset.train_x, 2), (dataset.val, 2), (dataset.test, layouts.COUNTS["test"])):
            assert Counter(item.label for item in items) == dict.fromkeys(range(len(wanted)), count)


@pytest.mark.parametrize(("shots", "val"), [(1, 1), (4, 4), (5, 4)])
def test_few_shots_of_train_then_at_most_four_of_val(root, shots, val):
    """The draw, written out: `random` as the seed leaves it, one sample a class, train before val."""
    everything, _ = build(root, "StanfordCars")
    dataset, cfg = build(root, "StanfordCars", shots)
    set_random_seed(1)
    for drawn, items, count in ((dataset.train_x, everything.train_x, shots), (dataset.val, everything.val, val)):
        expected = []
        for label in dict.fromkeys(item.label for item in items):
            expected += random.sample([item for item in items if item.label == label], count)
        assert content(drawn) == content(expected)
    assert content(dataset.test) == content(everything.test)
    rest = unlabeled_paths(cfg, dataset.train_x)
    assert sorted([*rest, *(item.impath for item in dataset.train_x)]) == sorted(i.impath for i in everything.train_x)
    other, _ = build(root, "StanfordCars", shots, seed=2)
    assert content(other.train_x) != content(dataset.train_x)


def test_the_published_numbers_are_not_remarked_upon(root, capsys, monkeypatch):
    kind = CLASSES["EuroSAT"]
    monkeypatch.setattr(kind, "described", kind.described._replace(classes=3, train=18, val=15, test=6))
    build(root, "EuroSAT")
    assert "compare" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in NAMES if name != "FGVCAircraft"])
def test_a_missing_split_file_is_not_made_up(copy, tmp_path, name):
    file = copy(name) / f"split_zhou_{name}.json"
    file.unlink()
    with pytest.raises(UsageError, match=rf"no split file at {file}\. Get CoOp's with: gdown [\w-]{{33}} -O {file} "):
        build(tmp_path, name)
    assert not file.exists()


@pytest.mark.parametrize("list_", ["variants.txt", "images_variant_val.txt"])
def test_a_missing_list_of_the_aircraft(copy, tmp_path, list_):
    (copy("FGVCAircraft") / list_).unlink()
    with pytest.raises(UsageError, match=rf"{list_}: it is in data/ of fgvc-aircraft-2013b"):
        build(tmp_path, "FGVCAircraft")


def test_an_unknown_variant_of_the_aircraft(copy, tmp_path):
    (copy("FGVCAircraft") / "variants.txt").write_text("707-320\n727-200\nA300B4\n")
    with pytest.raises(UsageError, match=r"images_variant_train.txt, line 19: .* got '0000040 DC-10'"):
        build(tmp_path, "FGVCAircraft")


def test_missing_folders_and_images(copy, tmp_path):
    with pytest.raises(UsageError, match=rf"missing folder {tmp_path}/eurosat: {tmp_path} holds nothing"):
        build(tmp_path, "EuroSAT")
    folder = copy("EuroSAT") / "2750"
    (folder / "Forest" / "Forest_3.jpg").unlink()
    with pytest.raises(UsageError, match=r"EuroSAT.json has the image .*Forest_3.jpg, which is missing.* 12 others"):
        build(tmp_path, "EuroSAT")
    shutil.rmtree(folder / "Forest")
    with pytest.raises(UsageError, match=r"missing folder .*2750/Forest: .* holds \['AnnualCrop', 'SeaLake'\]"):
        build(tmp_path, "EuroSAT")


def edited(file: Path, change) -> None:
    split = json.loads(file.read_text())
    change(split)
    file.write_text(json.dumps(split))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: split.pop("val"), r"not a split file \(KeyError: 'val'\): expected \{\"train\""),
        (lambda split: split["test"].append(["a.jpg", 1]), "not a split file"),
        (lambda split: split["test"][0].__setitem__(1, "one"), "not a split file"),
        (lambda split: split["test"][0].__setitem__(2, "Forest"), "3 labels and 3 class names do not go one to one"),
        (lambda split: split.update(train=split["train"][6:]), "no training image has label 0; expected all of 0 to 2"),
    ],
)
def test_a_broken_split_file(copy, tmp_path, change, message):
    edited(copy("EuroSAT") / "split_zhou_EuroSAT.json", change)
    with pytest.raises(UsageError, match=message):
        build(tmp_path, "EuroSAT")


def test_two_classes_of_one_name_are_refused(copy, tmp_path):
    def rename(split):
        for entry in (entry for items in split.values() for entry in items if entry[1] == 2):
            entry[2] = "Forest"

    edited(copy("EuroSAT") / "split_zhou_EuroSAT.json", rename)
    with pytest.raises(UsageError, match="3 labels and 2 class names"):
        build(tmp_path, "EuroSAT")
