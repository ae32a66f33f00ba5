"""Datum, DatasetBase and few-shot sampling."""

from __future__ import annotations

import random
from pathlib import Path

import host_toy
import pytest

from dho_plugin import host


def test_datum_carries_path_label_domain_and_class_name(root: Path) -> None:
    path = str(root / "train_x" / "ash" / "0.png")
    item = host.Datum(impath=path, label=2, domain=1, classname="ash")
    assert (item.impath, item.label, item.domain, item.classname) == (path, 2, 1, "ash")
    with pytest.raises(AttributeError):
        item.label = 3


@pytest.mark.filterwarnings("ignore")
def test_datum_refuses_a_missing_file() -> None:
    with pytest.raises((FileNotFoundError, AssertionError)):
        host.Datum(impath="/nowhere/at/all.png")


def test_dataset_takes_its_classes_from_train_x(root: Path) -> None:
    train, test = host_toy.read_split(host, root, "train_x"), host_toy.read_split(host, root, "test")
    dataset = host.DatasetBase(train_x=train[::-1], test=test)
    assert dataset.num_classes == 3
    assert dataset.classnames == ["ash", "birch", "cedar"]
    assert dataset.lab2cname == {0: "ash", 1: "birch", 2: "cedar"}
    assert (dataset.train_x, dataset.train_u, dataset.val, dataset.test) == (train[::-1], None, None, test)


def test_number_of_classes_counts_a_gap_in_the_labels(root: Path) -> None:
    train = [item for item in host_toy.read_split(host, root, "train_x") if item.label != 1]
    dataset = host.DatasetBase(train_x=train)
    assert dataset.num_classes == 3
    assert dataset.classnames == ["ash", "cedar"]


def test_splitting_by_label_and_domain_keeps_the_order(root: Path) -> None:
    train = host_toy.read_split(host, root, "train_x")
    dataset = host.DatasetBase(train_x=train)
    by_label = dataset.split_dataset_by_label(train[::-1])
    assert list(by_label) == [2, 1, 0]
    assert by_label[0] == train[:5][::-1]
    by_domain = dataset.split_dataset_by_domain(train)
    assert by_domain == {0: train[:5] + train[8:], 1: train[5:8]}


@pytest.mark.parametrize("repeat", [False, True])
def test_few_shots_are_drawn_class_by_class_with_pythons_random(root: Path, repeat: bool) -> None:
    """The same seed must give the split that everyone else's runs with Dassl use."""
    train, val = host_toy.read_split(host, root, "train_x"), host_toy.read_split(host, root, "val")
    dataset = host.DatasetBase(train_x=train)
    random.seed(5)
    drawn = dataset.generate_fewshot_dataset(train, val, num_shots=3, repeat=repeat)
    random.seed(5)
    expected = random.sample(train[:5], 3) + random.sample(train[5:8], 3)
    expected += random.choices(train[8:], k=3) if repeat else train[8:]
    expected_val = []
    for start in (0, 2, 4):
        expected_val += random.choices(val[start : start + 2], k=3) if repeat else val[start : start + 2]
    assert list(drawn) == [expected, expected_val]


def test_few_shots_of_one_source_come_as_one_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = host_toy.read_split(host, root, "train_x")
    dataset = host.DatasetBase(train_x=train)
    drawn = dataset.generate_fewshot_dataset(train, num_shots=1)
    assert [item.label for item in drawn] == [0, 1, 2]
    assert capsys.readouterr().out == "Creating a 1-shot dataset\n"


def test_no_shots_returns_the_sources_themselves(root: Path) -> None:
    train, val = host_toy.read_split(host, root, "train_x"), host_toy.read_split(host, root, "val")
    dataset = host.DatasetBase(train_x=train)
    assert dataset.generate_fewshot_dataset(train) is train
    both = dataset.generate_fewshot_dataset(train, val, num_shots=0)
    assert both[0] is train
    assert both[1] is val


def test_file_helpers(root: Path, tmp_path: Path) -> None:
    image = host.read_image(str(root / "train_x" / "ash" / "0.png"))
    assert (image.mode, image.size) == ("RGB", (12, 10))
    folder = tmp_path / "a" / "b"
    host.mkdir_if_missing(str(folder))
    host.mkdir_if_missing(str(folder))
    for name in ("z", ".hidden", "fresh.sh"):
        (folder / name).touch()
    assert host.listdir_nohidden(str(folder), sort=True) == ["fresh.sh", "z"]
