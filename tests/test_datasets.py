from __future__ import annotations

import os
import random

import pytest
import runs
import tiny
from PIL import Image

from dho_plugin import cli
from dho_plugin.classes import ClassList, class_list
from dho_plugin.datasets.imagenet import read_classnames
from dho_plugin.errors import UsageError
from dho_plugin.host import DATASET_REGISTRY, DatasetBase, Datum
from dho_plugin.pool import unlabeled_paths


def build(workspace, name: str, shots: int = -1):
    line = f"--trainer CoOp --dataset {name} --root {workspace} --shots {shots}"
    cfg = cli.build_config(cli.parser().parse_args(line.split()))
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg), cfg


@pytest.mark.parametrize(
    ("name", "classes", "test"),
    [
        ("imagenet", 6, 12),
        ("imagenetv2", 6, 12),
        ("imagenet_sketch", 6, 12),
        ("imagenet_a", 3, 6),
        ("imagenet_r", 3, 6),
    ],
)
def test_the_five_layouts(workspace, name, classes, test):
    dataset, _ = build(workspace, name)
    assert (dataset.num_classes, len(dataset.test)) == (classes, test)
    ids = tiny.WNIDS if classes == 6 else tiny.SUBSET
    assert class_list(dataset).ids == tuple(ids)
    assert class_list(dataset).names == tuple(tiny.NAMES[tiny.WNIDS.index(wnid)] for wnid in ids)


def test_classes_of_one_name_stay_two_classes(workspace):
    dataset, _ = build(workspace, "imagenet")
    assert class_list(dataset).names.count("crane") == 2
    assert len(set(class_list(dataset).ids)) == 6


def test_a_run_knows_its_images_from_listings_alone(tmp_path, monkeypatch):
    """Of a million files on a network drive none is opened, nor looked at one by one."""
    names = [f"n{label:08d}" for label in range(4)]
    for name in names:
        for split, count in (("train", 5), ("val", 1)):
            folder = tmp_path / "imagenet/images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.JPEG").touch()
        (folder / ".hidden").touch()
    (tmp_path / "imagenet/classnames.txt").write_text("".join(f"{name} x{name}\n" for name in names))
    looked = []
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: looked.append(str(path)) or isfile(path))
    monkeypatch.setattr(Image, "open", lambda path: pytest.fail(f"opened {path}"))
    dataset, cfg = build(tmp_path, "imagenet", shots=2)
    pool = unlabeled_paths(cfg, dataset.train_x, dataset.test)
    assert (len(dataset.train_x), len(pool), len(dataset.test)) == (8, 12, 4)
    assert not [path for path in looked if path.endswith(".JPEG")]
    assert all(isfile(item.impath) for item in [*dataset.train_x, *dataset.test])
    assert {item.classname for item in dataset.train_x} == {f"x{name}" for name in names}


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_what_is_no_file_in_a_class_folder_is_named(tmp_path, kind):
    root = tiny.imagenet_tree(tmp_path)
    odd = root / "imagenet/images/train" / tiny.WNIDS[2] / "odd.JPEG"
    odd.mkdir() if kind == "folder" else odd.symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=rf"{tiny.WNIDS[2]} holds 'odd.JPEG', which is no file"):
        build(root, "imagenet")


def test_numbered_folders_are_in_numeric_order(tmp_path):
    """ "10" comes after "2", not after "1"."""
    wnids = [f"n{i:08d}" for i in range(12)]
    folder = tmp_path / "imagenetv2"
    for i in range(12):
        image = folder / "imagenetv2-matched-frequency-format-val" / str(i) / "x.JPEG"
        image.parent.mkdir(parents=True)
        image.touch()
    (folder / "classnames.txt").write_text("".join(f"{wnid} name {i}\n" for i, wnid in enumerate(wnids)))
    dataset, _ = build(tmp_path, "imagenetv2")
    assert list(dataset.class_ids) == wnids
    assert [item.classname for item in dataset.test] == [f"name {i}" for i in range(12)]


def test_classnames_with_bom_crlf_blank_lines_and_umlauts(tmp_path):
    path = tmp_path / "classnames.txt"
    path.write_bytes("\ufeffn1 Käfer\r\n\r\nn2 tank suit\r\n".encode())
    assert read_classnames(path) == {"n1": "Käfer", "n2": "tank suit"}
    path.write_text("n1 tench\nn2\n")
    with pytest.raises(UsageError, match="line 2"):
        read_classnames(path)
    path.write_bytes("n1 tench\nn2 Käfer\n".encode("latin-1"))
    with pytest.raises(UsageError, match="line 2: not UTF-8"):
        read_classnames(path)


def test_class_folders_without_a_name_and_differing_train_and_test(tmp_path):
    tiny.imagenet_tree(tmp_path)
    (tmp_path / "imagenet/images/val" / tiny.WNIDS[0]).rename(tmp_path / "gone")
    with pytest.raises(UsageError, match="differ in 1 classes"):
        build(tmp_path, "imagenet")
    (tmp_path / "imagenet/images/val/n99999999").mkdir()
    with pytest.raises(UsageError, match="n99999999"):
        build(tmp_path, "imagenet")


def test_pool_is_the_complement_or_the_union(workspace):
    dataset, cfg = build(workspace, "imagenet", shots=1)
    labeled = {item.impath for item in dataset.train_x}
    rest = unlabeled_paths(cfg, dataset.train_x)
    assert len(labeled) == 6 and len(rest) == 18
    assert labeled.isdisjoint(rest)
    union = unlabeled_paths(cfg, dataset.train_x, pool="union")
    assert set(union) == labeled | set(rest)


def test_pool_of_a_foreign_dataset_class(workspace, tmp_path):
    """A class as a user of Dassl writes it: nothing in it knows this package."""
    files = sorted(str(path) for path in (workspace / "imagenet/images/train").rglob("*.JPEG"))

    class Foreign(DatasetBase):
        def __init__(self, cfg):
            items = [Datum(impath=file, label=i % 2, classname=f"c{i % 2}") for i, file in enumerate(files)]
            random.shuffle(items)  # as datasets do that make their own train/val split
            test = items[:2]
            super().__init__(
                train_x=self.generate_fewshot_dataset(items, num_shots=cfg.DATASET.NUM_SHOTS), val=test, test=test
            )

    _, cfg = build(workspace, "imagenet", shots=3)
    cfg.defrost()
    cfg.DATASET.NAME = "Foreign"
    DATASET_REGISTRY.register(Foreign, force=True)
    dataset = Foreign(cfg)
    assert class_list(dataset) == ClassList(("c0", "c1"), ("c0", "c1"))
    state = random.getstate()
    rest = unlabeled_paths(cfg, dataset.train_x)
    assert random.getstate() == state  # the run's own draws do not depend on the second build
    assert sorted(rest + [item.impath for item in dataset.train_x]) == files


def test_a_split_of_another_folder_is_refused(workspace, tmp_path):
    _, cfg = build(workspace, "imagenet", shots=1)
    stranger = Datum(impath=str(workspace / "student.safetensors"), label=0, classname="x")
    with pytest.raises(UsageError, match="another folder"):
        unlabeled_paths(cfg, [stranger])


def test_names_that_a_host_owns_stay_the_hosts(workspace):
    from dho_plugin.host import Registry
    from dho_plugin.registration import _register

    registry = Registry("TEST")

    def named(module: str):
        return type("CoOp", (), {"__module__": module})

    theirs = named("trainers.coop")
    registry.register(theirs)
    _register(registry, named("dho_plugin.trainers.coop"))
    assert registry.get("CoOp") is theirs
    late = Registry("TEST")
    _register(late, named("dho_plugin.trainers.coop"))
    late.register()(theirs)
    assert late.get("CoOp") is theirs
    with pytest.raises(KeyError):
        late.register(named("trainers.other"))


def test_train_and_test_views_come_from_the_models_own_size(workspace, tmp_path):
    trainer = runs.make(workspace, "CoOpDHO", tmp_path)
    batch = trainer.train_loader_x.batches[0]
    assert batch["img"].shape == (4, 3, 32, 32)
    assert batch["img_teacher"].shape == (4, 3, 64, 64)
    assert next(iter(trainer.test_loader))["img"].shape[1:] == (3, 32, 32)
