"""`--data`: images of one's own as class folders or as a table, what is refused, and runs on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny

from dho_plugin import cli
from dho_plugin.classes import class_list
from dho_plugin.datasets import own_checks
from dho_plugin.errors import UsageError
from dho_plugin.host import DATASET_REGISTRY
from dho_plugin.pool import check_trainable, unlabeled_paths

CLASSES = ("blåbär", "red apple")


def image(path: Path, number: int) -> Path:
    """An image of its own for each number."""
    tiny.write_image(path, np.random.default_rng(number), number, size=(24, 20))
    return path


@pytest.fixture
def own(tmp_path) -> Path:
    """Six labelled and ten unlabelled images, four for testing; and files that are to be left out."""
    root, number = tmp_path / "fruit", iter(range(100))
    for name in CLASSES:
        for i in range(3):
            image(root / "labeled" / name / ("deep/er" if i == 2 else "") / f"{i}.JPG", next(number))
        for i in range(2):
            image(root / "test" / name / f"{i}.jpg", next(number))
    for i in range(10):
        image(root / "unlabeled" / f"{i % 3}" / f"{i}.jpeg", next(number))
    image(root / "unlabeled" / ".hidden" / "x.jpg", next(number))
    (root / "labeled" / CLASSES[0] / "notes.txt").write_text("no image")
    (root / "labeled" / CLASSES[0] / "._0.jpg").write_text("what macOS leaves")
    return root


def words(workspace: Path, data: Path, trainer: str, output: Path, flags: str = "", options: str = "") -> list[str]:
    models = f"--backbone {workspace}/student.safetensors --teacher {workspace}/teacher.pt"
    where = ["--data", str(data), "--output-dir", str(output)]
    line = f"--trainer {trainer} {models} {flags}".split()
    return [*line, *where, *f"{runs.OPTIONS} {runs.PRECISION} {runs.DEPTHS} {options}".split()]


def config(data: Path, flags: str = ""):
    return cli.build_config(cli.parser().parse_args(["--trainer", "StudentDHO", "--data", str(data), *flags.split()]))


def build(data: Path, flags: str = ""):
    cfg = config(data, flags)
    return DATASET_REGISTRY.get("Folder")(cfg), cfg


def below(items, root: Path) -> list[str]:
    return sorted(Path(getattr(item, "impath", item)).relative_to(root).as_posix() for item in items)


def refused(data: Path, *parts: str) -> None:
    with pytest.raises(UsageError) as error:
        config(data)
    for part in parts:
        assert part in str(error.value)


def test_class_folders(own):
    dataset, cfg = build(own)
    assert class_list(dataset).ids == class_list(dataset).names == CLASSES
    assert below(dataset.train_x, own) == [f"labeled/{c}/{n}.JPG" for c in CLASSES for n in ("0", "1", "deep/er/2")]
    assert [item.label for item in dataset.train_x] == [0, 0, 0, 1, 1, 1]
    assert [(item.label, item.classname) for item in dataset.test] == [(0, CLASSES[0])] * 2 + [(1, CLASSES[1])] * 2
    assert dataset.val == []
    rest = unlabeled_paths(cfg, dataset.train_x)
    assert below(rest, own) == sorted(f"unlabeled/{i % 3}/{i}.jpeg" for i in range(10))
    assert set(below(unlabeled_paths(cfg, dataset.train_x, pool="union"), own)) == {
        *below(rest, own),
        *below(dataset.train_x, own),
    }


def test_shots_leave_the_rest_of_the_labelled_images_unlabelled(own):
    dataset, cfg = build(own, "--shots 1")
    rest = unlabeled_paths(cfg, dataset.train_x)
    assert (len(dataset.train_x), len(rest)) == (2, 14)
    assert {item.impath for item in dataset.train_x}.isdisjoint(rest)
    assert len(unlabeled_paths(cfg, dataset.train_x, pool="union")) == 16
    everything = build(own)[0]
    assert {item.label for item in everything.train_u} == {-1}


def test_without_unlabelled_images_the_labelled_ones_are_all_there_is(own, capsys):
    shutil.rmtree(own / "unlabeled")
    dataset, cfg = build(own)
    assert unlabeled_paths(cfg, dataset.train_x) == []
    assert "no unlabelled images" in capsys.readouterr().out
    dataset, cfg = build(own, "--shots 2")
    assert len(unlabeled_paths(cfg, dataset.train_x)) == 2


def test_names_of_classes(own):
    (own / "labeled" / "red").mkdir()
    (own / "labeled" / "big_dog").mkdir()
    image(own / "labeled" / "red" / "0.png", 90)
    image(own / "labeled" / "big_dog" / "0.png", 91)
    # Decomposed, as macOS writes it; one id begins like another; names may be equal.
    (own / "classes.txt").write_text("bla\u030aba\u0308r some fruit\n\nred apple some fruit\n", encoding="utf-8")
    dataset, _ = build(own)
    assert class_list(dataset).ids == ("big_dog", CLASSES[0], "red", CLASSES[1])
    assert class_list(dataset).names == ("big dog", "some fruit", "red", "some fruit")
    for line in ("red apple", "pear a pear"):
        (own / "classes.txt").write_text(f"red Red\n{line}\n")
        refused(own, "classes.txt, line 2", line)


def table(own: Path, rows: str, header: str = "path,label,split") -> Path:
    file = own.parent / "fruit.csv"
    file.write_text(f"{header}\n{rows}", encoding="utf-8-sig")
    return file


ROWS = """\
"fruit/labeled/red apple/0.JPG","apple, red"
fruit/labeled/blåbär/0.JPG,blåbär
fruit/unlabeled/0/0.jpeg,
"""


def test_a_table(own):
    file = table(own, ROWS, header="path,label")
    dataset, cfg = build(file)
    assert class_list(dataset).ids == ("apple, red", "blåbär")
    assert below(dataset.train_x, own) == ["labeled/blåbär/0.JPG", "labeled/red apple/0.JPG"]
    assert below(unlabeled_paths(cfg, dataset.train_x), own) == ["unlabeled/0/0.jpeg"]
    root, csv = cfg.DATASET.ROOT, cfg.DATASET.CSV
    assert (root, csv) == (str(file.parent), "fruit.csv")
    assert cfg.OUTPUT_DIR.split("/")[1] == f"{own.parent.name}_fruit"
    refused(own.parent, "labeled/CLASS", "fruit.csv")  # a table of another name has to be named
    file.rename(own.parent / "labels.csv")
    assert class_list(build(own.parent)[0]) == class_list(dataset)


def test_columns_and_splits_of_a_table(own):
    a, b, c, d = ("fruit/unlabeled/" + name for name in ("0/0.jpeg", "1/1.jpeg", "2/2.jpeg", "0/3.jpeg"))
    file = table(own, f",{a},\ntrain,{b},y\r\n,,\nval,{c},x\n,{d},x\n", "split,path,label")
    dataset, cfg = build(file)
    assert [len(s) for s in (dataset.train_x, dataset.val, dataset.test)] == [2, 1, 0]
    assert below(unlabeled_paths(cfg, dataset.train_x), own) == ["unlabeled/0/0.jpeg"]


@pytest.mark.parametrize(
    ("header", "rows", "parts"),
    [
        ("path;label", "", ("['path;label']", "path,label,split")),
        ("path,label,Split", "", ("'Split'",)),
        ("path,label", ROWS + "a,b,c\n", ("line 5", "3 cells", "quote")),
        ("path,label", ROWS + "fruit/nowhere.jpg,x\n", ("line 5", "no file", "nowhere.jpg")),
        ("path,label", ROWS + "fruit/unlabeled/../unlabeled/0/0.jpeg,x\n", ("line 5", "line 4 too")),
        ("path,label,split", "fruit/unlabeled/0/0.jpeg,x,tests\n", ("line 2", "Did you mean 'test'")),
        ("path,label,split", "fruit/unlabeled/0/0.jpeg,,test\n", ("line 2", "needs a label")),
        ("path,label", '"fruit/x,y\n', ("not CSV",)),
    ],
)
def test_mistakes_in_a_table(own, header, rows, parts):
    refused(table(own, rows, header), *parts)


def test_a_table_of_another_encoding(own):
    file = own.parent / "latin.csv"
    file.write_bytes("path,label\nblåbär.jpg,x\n".encode("latin-1"))
    refused(file, "UTF-8")
    refused(own.parent / "nowhere.csv", "no table")


def test_what_is_missing_is_said_with_what_is_there(own):
    refused(own.parent / "fruits", "no folder", "['fruit']", "labeled/CLASS")
    (own / "labeled").rename(own / "images")
    refused(own, "['images', 'test', 'unlabeled']", "labeled/CLASS", "labels.csv")


def test_layouts_that_cannot_be_meant(own):
    for wrong, right in (("unlabelled", "unlabeled"), ("Validation", "val"), ("Training", "train")):
        (own / wrong).mkdir()
        refused(own, wrong, f"rename it to {right}")
        (own / wrong).rmdir()
    (own / "labels.csv").write_text("path,label\n")
    refused(own, "labeled/ and labels.csv")
    (own / "labels.csv").unlink()
    image(own / "test" / "loose.jpg", 95)
    refused(own, "1 images outside class folders", "loose.jpg")
    (own / "test" / "loose.jpg").unlink()
    (own / "labeled" / "empty").mkdir()
    refused(own, "empty holds no images")
    (own / "labeled" / "empty").rmdir()
    (own / "val").mkdir()
    refused(own, "val has no class folders")
    (own / "val").rmdir()
    shutil.rmtree(own / "labeled" / CLASSES[0])
    refused(own, "labelled images of 1 classes")


def test_a_class_that_only_the_test_set_has(own):
    shutil.rmtree(own / "test" / CLASSES[0])
    assert len(build(own)[0].test) == 2  # fewer is fine
    image(own / "test" / "pear" / "0.jpg", 96)
    refused(own, "test has 1 classes", "pear", "red apple")


def test_an_image_in_two_sets_is_refused_by_content(own, monkeypatch, capsys):
    shutil.copy(own / "unlabeled" / "0" / "3.jpeg", own / "test" / CLASSES[0] / "other_name.jpg")
    refused(own, "1 images stand in two", "unlabeled/0/3.jpeg = test/blåbär/other_name.jpg")
    shutil.copy(own / "labeled" / CLASSES[1] / "0.JPG", own / "test" / CLASSES[0] / "again.jpg")
    refused(own, "2 images", "labeled/red apple/0.JPG = test/blåbär/again.jpg")
    monkeypatch.setattr(own_checks, "MAX_COMPARED", 5)
    config(own)
    assert "not compared by content" in capsys.readouterr().out
    (own / "test" / CLASSES[0] / "link.jpg").symlink_to(own / "labeled" / CLASSES[1] / "1.JPG")
    refused(own, "1 images", "link.jpg")


def test_a_file_that_is_no_image(own):
    (own / "unlabeled" / "page.jpg").write_text("<html>")
    refused(own, "1 files are no images", "page.jpg", "INPUT.BAD_IMAGES skip")


def test_skipping_lets_training_images_be_and_no_others(own):
    whole = build(own)[0].train_u
    (own / "unlabeled" / "page.jpg").write_text("<html>")
    skip = "INPUT.BAD_IMAGES skip"
    assert len(build(own, skip)[0].train_u) == len(whole) + 1
    (own / "test" / CLASSES[0] / "page.jpg").write_text("<html> ")
    with pytest.raises(UsageError, match=r"1 files are no images.*/test/"):
        build(own, skip)


def test_links_are_followed_once(own, tmp_path):
    (own / "unlabeled" / "0" / "up").symlink_to(own / "unlabeled")
    (own / "unlabeled" / "2" / "again").symlink_to(own / "unlabeled" / "1")
    elsewhere = image(tmp_path / "elsewhere" / "e.png", 97)
    (own / "unlabeled" / "linked").symlink_to(elsewhere.parent)
    dataset, cfg = build(own)
    assert len(unlabeled_paths(cfg, dataset.train_x)) == 11


@pytest.mark.parametrize("flag", ["--dataset shapes", "--root x", "--dataset-config-file x.yaml"])
def test_the_flag_stands_alone(own, flag):
    with pytest.raises(UsageError, match=f"leave out {flag.split()[0]}"):
        config(own, flag)


def test_other_wishes(own):
    with pytest.raises(UsageError, match="no shifted test sets"):
        config(own, "--ood")
    with pytest.raises(UsageError, match="SUBSAMPLE_CLASSES"):
        build(own, "DATASET.SUBSAMPLE_CLASSES base")
    with pytest.raises(UsageError, match="no validation images"):
        check_trainable(build(own)[0], final_model="best_val")


def test_defaults(own):
    cfg = config(own)
    assert cfg.OUTPUT_DIR == "output/fruit/StudentDHO/ep200_all/seed1"
    assert (cfg.DATASET.NUM_SHOTS, cfg.MODEL.BACKBONE.NAME) == (-1, "resnet18:imagenet")
    args = cli.parser().parse_args(["--trainer", "CoOpDHO", "--data", str(own), "--shots", "2"])
    assert cli.build_config(args).OUTPUT_DIR.startswith("output/fruit/CoOpDHO/vit_b16_ep50_2shots/")


def test_six_labelled_and_ten_unlabelled_images_make_whole_batches(workspace, own, tmp_path):
    """An epoch is one step: both sets come round until the batch is full."""
    steps = "TRAINER.DHO.STEPS_PER_EPOCH 0 DATALOADER.TRAIN_X.BATCH_SIZE 64 TRAIN.COUNT_ITER train_u"
    line = words(workspace, own, "StudentDHO", tmp_path / "out", options=steps)
    trainer = cli.build_trainer(cli.build_config(cli.parser().parse_args(line)))
    assert len(trainer.train_loader_x) == 1
    batch = trainer.train_loader_x.batches[0]
    assert set(np.bincount(batch["index"])) == {10, 11}
    assert set(np.bincount(batch["unlabeled"]["index"])) == {6, 7}


def test_a_run_and_what_it_goes_on_from(workspace, own, tmp_path):
    def run():
        args = cli.parser().parse_args(words(workspace, own, "LinearProbeDHO", tmp_path / "out"))
        return cli.run(cli.build_config(args), args)

    row = run()
    assert list(row) == ["test"] and run() == row
    image(own / "unlabeled" / "new.jpg", 98)
    with pytest.raises(UsageError, match=r"DATASET\.CONTENT: '6 labelled, 10 unlabelled.*now"):
        run()


@pytest.mark.parametrize("trainer", ["CE", "CoOpDHO"])
def test_without_a_test_set_it_trains_and_saves_and_says_so(workspace, own, tmp_path, capsys, trainer):
    (own / "test").rename(own / "val")  # which best_val uses, and no row shows
    args = cli.parser().parse_args(
        words(workspace, own, trainer, tmp_path / "out", options="TEST.FINAL_MODEL best_val TRAIN.CHECKPOINT_FREQ 1")
    )
    assert cli.run(cli.build_config(args), args) == {}
    printed = capsys.readouterr().out
    assert "no test images" in printed and "nothing is evaluated" in printed
    assert list((tmp_path / "out").rglob("model-best.pth.tar")) and list((tmp_path / "out").rglob("model.pth.tar-2"))
    flags = f"--eval-only --model-dir {tmp_path}/out"
    again = cli.parser().parse_args(words(workspace, own, trainer, tmp_path / "eval", flags))
    assert cli.run(cli.build_config(again), again) == {}


def test_no_oracle_without_a_test_set(workspace, own, tmp_path):
    shutil.rmtree(own / "test")
    line = words(workspace, own, "LinearProbeDHO", tmp_path / "out", options="TRAINER.DHO.CHOOSE oracle")
    args = cli.parser().parse_args(line)
    with pytest.raises(UsageError, match="no test images"):
        cli.run(cli.build_config(args), args)
    assert not list((tmp_path / "out").rglob("*.pth.tar*"))


def test_a_cascade_runs_its_first_stage_on_the_same_images(workspace, own, tmp_path):
    line = words(workspace, own, "CoOpCasPL", tmp_path / "out")
    args = cli.parser().parse_args(line)
    assert list(cli.run(cli.build_config(args), args)) == ["test"]
    assert "CONTENT: 6 labelled, 10 unlabelled" in (tmp_path / "out" / "stage_one" / "config.yaml").read_text()
