"""split.json: written by every training run, read back by --labels, and what of it is refused."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import runs
import test_attach
import test_folder
import tiny

from dho_plugin import cli, split_record
from dho_plugin.errors import UsageError
from dho_plugin.manifest import labeled_part, read
from dho_plugin.split_record import read_labeled, recorded, write_split

own = test_folder.own
TIMES, IMAGES = 20, 1500


def split(folder: Path) -> dict:
    return json.loads((folder / "split.json").read_text())


def item(path: str, label: int, name: str) -> SimpleNamespace:
    return SimpleNamespace(impath=path, label=label, classname=name)


def dataset(count: int = IMAGES, root: str = "/data") -> SimpleNamespace:
    items = [item(f"{root}/train/{i % 7}/{i:05d}.png", i % 7, f'class "{i % 7}", é') for i in range(count)]
    return SimpleNamespace(train_x=items, val=items[:70], test=[])


def slow(rows: list) -> str:
    return hashlib.sha256("\n".join(sorted(f"{path} {label}" for path, label, _ in rows)).encode()).hexdigest()


def test_a_run_leaves_its_split_with_the_manifests_hashes(workspace, own, tmp_path):
    (own / "test").rename(own / "val")
    line = test_folder.words(workspace, own, "LinearProbeDHO", tmp_path / "out", "--shots 2")
    args = cli.parser().parse_args(line)
    cli.run(cli.build_config(args), args)
    found, manifest = split(tmp_path / "out"), read(tmp_path / "out")
    assert list(found) == ["labeled", "validation", "sha256"]
    for name in ("labeled", "validation"):
        assert found[name] == sorted(found[name]) and len(found[name]) == 4
        assert found["sha256"][name] == manifest[name]["sha256"] == slow(found[name])
    assert ["val/blåbär/0.jpg", 0, "blåbär"] in found["validation"]
    assert {row[2] for row in found["labeled"]} == set(test_folder.CLASSES)
    assert all((own / path).is_file() for path, *_ in found["labeled"] + found["validation"])
    assert not list(tmp_path.rglob("*.tmp")) and not list(own.rglob("split.json"))


def test_a_test_set_as_validation_and_a_large_set_are_kept_by_hash_alone(workspace, tmp_path, monkeypatch):
    test_attach.make(workspace, "LogitsHostDHO", tmp_path / "a").train()  # attached trainers leave one too
    found = split(tmp_path / "a")
    assert found["validation"] is None and found["sha256"]["validation"] == read(tmp_path / "a")["test"]["sha256"]
    assert len(found["labeled"]) == 12
    monkeypatch.setattr(split_record, "MAX_ROWS", 69)
    write_split(tmp_path, dataset(), "/data")
    assert split(tmp_path)["labeled"] is None and split(tmp_path)["validation"] is None
    assert split(tmp_path)["sha256"]["labeled"] == labeled_part(dataset().train_x, "/data")["sha256"]
    with pytest.raises(UsageError, match="keeps no paths: there were more than 69 labelled images"):
        read_labeled(tmp_path / "split.json")


def test_the_same_split_is_the_same_file(tmp_path):
    texts = set()
    for number, root in enumerate(("/data", "/elsewhere/data")):
        some = dataset(50, root)
        random.Random(number).shuffle(some.train_x)
        write_split(tmp_path, some, root)
        texts.add((tmp_path / "split.json").read_text())
    assert len(texts) == 1
    odd = SimpleNamespace(train_x=[item("/data/\udcff\n.png", 0, "{}"), item("/out/x.png", 1, "")], val=None, test=None)
    write_split(tmp_path, odd, "/data")
    assert read_labeled(tmp_path / "split.json")[0] == [("/out/x.png", 1, ""), ("\udcff\n.png", 0, "{}")]
    assert recorded(odd.train_x, tmp_path / "split.json", "/data") == odd.train_x


def test_its_images_are_labelled_again_wherever_the_dataset_lies(workspace, tmp_path, capsys):
    runs.run(workspace, "LinearProbeDHO", tmp_path / "a")
    shutil.copytree(workspace / "imagenet", tmp_path / "moved" / "imagenet")
    flags = f"--root {tmp_path / 'moved'} --shots -1 --labels {tmp_path}/a/split.json"
    runs.run(workspace, "LinearProbeDHO", tmp_path / "b", flags)
    parts = [read(tmp_path / name) for name in "ab"]
    assert parts[0]["labeled"] == parts[1]["labeled"] and parts[0]["unlabeled"] == parts[1]["unlabeled"]
    assert (tmp_path / "a" / "split.json").read_text() == (tmp_path / "b" / "split.json").read_text()
    again = runs.make(workspace, "LinearProbeDHO", tmp_path / "c", flags).dm.dataset
    assert {Path(one.impath).relative_to(tmp_path / "moved").as_posix() for one in again.train_x} == {
        row[0] for row in split(tmp_path / "a")["labeled"]
    }
    capsys.readouterr()
    with pytest.raises(UsageError, match="choose one"):
        runs.make(workspace, "LinearProbeDHO", tmp_path / "d", f"--labels {tmp_path}/a/split.json")


def test_another_split_in_a_folder_is_another_run(workspace, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        runs.run(workspace, "LinearProbe", tmp_path / name, f"--seed {seed}")
        shutil.copy(tmp_path / name / "split.json", tmp_path / f"{name}.json")
    runs.run(workspace, "LinearProbe", tmp_path / "c", f"--shots -1 --labels {tmp_path}/a.json")
    with pytest.raises(UsageError, match=r"DATASET.LABELS: 'a.json sha256:\w+' there, 'b.json sha256:"):
        runs.run(workspace, "LinearProbe", tmp_path / "c", f"--shots -1 --labels {tmp_path}/b.json")


def edited(folder: Path, **changes) -> Path:
    """split.json with other values for the cells of its third labelled image, its digest made to fit."""
    content = split(folder)
    row = dict(zip(("path", "label", "name"), content["labeled"][2], strict=True)) | changes
    content["labeled"][2] = [row["path"], row["label"], row["name"]]
    content["sha256"]["labeled"] = slow(content["labeled"])
    (folder / "edited.json").write_text(json.dumps(content))
    return folder / "edited.json"


@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ({"label": 3}, "3, 'class \"0\", é']; the dataset has [0, "),
        ({"name": "class 2"}, "0, 'class 2']; the dataset has [0, 'class \"0\", é']"),
        ({"path": "train/2/x.png"}, "['train/2/x.png', 0, 'class \"0\", é']; no such image is labelled in /data"),
        ({"path": "../data/train/2/00002.png"}, "no such image is labelled"),
        ({"name": "a\n* accuracy: 99%"}, r"a\n* accuracy: 99%"),
    ],
)
def test_the_first_row_that_differs_is_named(tmp_path, changes, there):
    some = dataset(70)
    write_split(tmp_path, some, "/data")
    assert len(recorded(some.train_x, tmp_path / "split.json", "/data")) == 70
    file = edited(tmp_path, **changes)
    with pytest.raises(UsageError) as error:
        recorded(some.train_x, file, "/data")
    assert there in str(error.value) and "\n" not in str(error.value)
    assert f"{file}, labelled image 3: [" in str(error.value)


def test_classes_in_another_order_are_found_by_the_first_row(workspace, tmp_path):
    """The classes of a dataset shift when one is added: labels are then another's, with paths as before."""
    runs.run(workspace, "LinearProbe", tmp_path / "a")
    shutil.copytree(workspace / "imagenet", tmp_path / "root" / "imagenet")
    for part in ("train", "val"):
        source = tmp_path / "root/imagenet/images" / part
        shutil.copytree(source / tiny.WNIDS[3], source / "n02012848")
    names = tmp_path / "root/imagenet/classnames.txt"
    names.write_text(names.read_text() + "n02012848 heron\n")
    flags = f"--root {tmp_path / 'root'} --shots -1 --labels {tmp_path}/a/split.json"
    with pytest.raises(UsageError, match=rf"image 5: .*{tiny.WNIDS[2]}.*JPEG', 2, 'crane'\]; the dataset has \[3, 'cr"):
        runs.make(workspace, "LinearProbe", tmp_path / "b", flags)


def test_a_row_left_out_is_known_by_the_hash_and_a_class_left_out_by_its_name(tmp_path):
    some = dataset(70)
    write_split(tmp_path, some, "/data")
    content = split(tmp_path)
    content["labeled"].pop(5)
    (tmp_path / "less.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"less.json: its labelled images are not those of its sha256"):
        recorded(some.train_x, tmp_path / "less.json", "/data")
    content["labeled"] = [row for row in content["labeled"] if row[1] != 4]
    content["sha256"]["labeled"] = slow(content["labeled"])
    (tmp_path / "less.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"no image of 1 classes, first 'class \"4\", é'"):
        recorded(some.train_x, tmp_path / "less.json", "/data")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"labeled": [["a", 0, "x"]',
        "[]",
        '{"labeled": [["a", 0, "x"]]}',
        '{"labeled": [["a", 0]], "sha256": {"labeled": ""}}',
        '{"labeled": [["a", "0", "x"]], "sha256": {"labeled": ""}}',
        '{"labeled": [["a", true, "x"]], "sha256": {"labeled": ""}}',
        '{"labeled": ["abc"], "sha256": {"labeled": ""}}',
        '{"labeled": 5, "sha256": {"labeled": ""}}',
        "[" * 100_000,
        b"\xff\xfe{",
    ],
)
def test_another_file_is_refused(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"x.json is no split of a run .*expected"):
        recorded(dataset(7).train_x, file, "/data")


def write_many(folder: str) -> None:
    for _ in range(TIMES):
        write_split(Path(folder), dataset(), "/data")


def test_two_processes_that_write_one_split_leave_a_whole_file(tmp_path):
    write_split(tmp_path, dataset(), "/data")
    whole = (tmp_path / "split.json").read_bytes()
    kinds = multiprocessing.get_all_start_methods()
    processes = multiprocessing.get_context("fork" if "fork" in kinds else "spawn")  # the former imports nothing anew
    writers = [processes.Process(target=write_many, args=(str(tmp_path),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = {whole}
    while any(writer.is_alive() for writer in writers):
        seen.add((tmp_path / "split.json").read_bytes())
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen | {(tmp_path / "split.json").read_bytes()} == {whole}
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]
