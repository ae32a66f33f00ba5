"""`--data` in its other layouts, class names that are hard to read or to fill in, --template, and what a run says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import runs
import test_attach
import test_folder
import torch
from test_folder import below, build, config, image, refused, words
from torchvision.datasets import ImageFolder

from dho_plugin import cli, teacher_check
from dho_plugin.classes import class_list
from dho_plugin.datasets.imagenet import read_classnames
from dho_plugin.errors import UsageError
from dho_plugin.host import DatasetBase, Datum
from dho_plugin.manifest import read, validation_line, validation_part
from dho_plugin.pool import check_shots, unlabeled_paths
from dho_plugin.templates import check_template

own = test_folder.own
# Each is a folder, and each is a trap for something: a template, a table, a number, a list, an order.
ODD = ("10", "9", "a {} of {x}", "blåbär 木", 'it\'s, "quoted"', "None", "x_y", "{}")


@pytest.fixture
def tree(tmp_path) -> Path:
    """Class folders alone, one of them nested; and files that ImageFolder passes by."""
    root, number = tmp_path / "rocks", iter(range(100))
    for name in ("basalt", "Gneis", "chalk 2"):
        for i in range(4):
            image(root / name / ("a/b" if i > 1 else "") / f"{i}.png", next(number))
    (root / "README.txt").write_text("no class")
    return root


def run(workspace, data: Path, trainer: str, output: Path, flags: str = "", options: str = "", template: str = ""):
    line = [*words(workspace, data, trainer, output, flags, options)]
    line = ["--template", template, *line] if template else line
    args = cli.parser().parse_args(line)
    return cli.run(cli.build_config(args), args)


# Layouts


def test_train_and_labeled_are_two_names_of_one_folder(own):
    before = below(build(own)[0].train_x, own / "labeled")
    (own / "labeled").rename(own / "train")
    dataset, cfg = build(own)
    assert below(dataset.train_x, own / "train") == before and len(dataset.test) == 4
    assert len(unlabeled_paths(cfg, dataset.train_x)) == 10
    (own / "labeled").mkdir()
    refused(own, "train/ and labeled/", "into one")
    (own / "labeled").rmdir()
    (own / "labels.csv").write_text("path,label\n")
    refused(own, "train/ and labels.csv")


def test_class_folders_alone_are_read_as_torchvision_reads_them(tree, capsys):
    theirs = ImageFolder(str(tree))
    dataset, cfg = build(tree)
    assert [(item.impath, item.label) for item in dataset.train_x] == theirs.samples
    assert class_list(dataset).ids == tuple(theirs.classes) == ("Gneis", "basalt", "chalk 2")
    assert (dataset.train_u, dataset.val, dataset.test) == (None, [], [])
    said = capsys.readouterr().out
    assert "no test images, so nothing will be evaluated" in said and "into train/ and some of their" in said
    few, cfg = build(tree, "--shots 1")
    rest = unlabeled_paths(cfg, few.train_x)
    assert len(few.train_x) == 3 and len(rest) == 9 and not {item.impath for item in few.train_x} & set(rest)


def test_a_run_on_class_folders_alone_trains_and_says_what_it_lacks(workspace, tree, tmp_path, capsys):
    assert run(workspace, tree, "LinearProbeDHO", tmp_path / "out", "--shots 2") == {}
    out = capsys.readouterr().out
    assert "to hold some out, move the class folders into" in out and "nothing is evaluated" in out
    assert "Validation: none\n" in out
    assert list((tmp_path / "out").rglob("model.pth.tar-2"))


def test_what_it_says_of_other_layouts(own, capsys):
    (own / "test").rename(own / "spare")
    build(own)
    said = capsys.readouterr().out
    assert "not read: ['spare']" in said and "move some to test/CLASS/" in said
    (own.parent / "fruit.csv").write_text(test_folder.ROWS.join(["path,label\n", ""]), encoding="utf-8")
    build(own.parent / "fruit.csv")
    assert "give some rows the split test" in capsys.readouterr().out


def test_folders_that_are_no_classes(tree):
    for name, part in (("unlabeled", "'unlabeled'"), ("valid", "rename it to val"), ("Train", "rename it to train")):
        (tree / name).mkdir()
        refused(tree, part, "CLASS/*.jpg")
        (tree / name).rmdir()
    (tree / "basalt" / "test").mkdir()  # a split inside each class, or a folder too high
    refused(tree, "basalt/test/ (one folder further down?)")
    (tree / "basalt" / "test").rmdir()
    image(tree / "loose.jpg", 90)
    refused(tree, "1 images outside class folders", "loose.jpg")
    refused(tree.parent, "labelled images of 1 classes (['rocks'])")


# Names


def odd_tree(root: Path) -> Path:
    for number, name in enumerate(ODD):
        for split in ("train", "test"):
            for i in range(2):
                image(root / split / name / f"{i}.png", 20 * number + 2 * i + (split == "test"))
    return root


def odd_table(root: Path) -> Path:
    rows = []
    for number, name in enumerate(ODD):
        for i in range(4):
            file = image(root / "pictures" / f"{number}, {i}.png", 5 * number + i)
            cell = name.replace('"', '""')
            rows.append(f'"{file.relative_to(root)}","{cell}",{"test" if i > 1 else "train"}\n')
    (root / "labels.csv").write_text("path,label,split\n" + "".join(rows), encoding="utf-8")
    return root


@pytest.mark.parametrize("make", [odd_tree, odd_table])
def test_odd_class_names_from_folder_to_prompt(workspace, tmp_path, make, capsys):
    """Ids are as written; a name is put into the prompt as it is, "_" read as a space, braces and all."""
    data = make(tmp_path / "odd")
    template = "ein {}, von Hand"
    row = run(workspace, data, "LinearProbeDHO", tmp_path / "out", "", "TEST.PER_CLASS_RESULT True", template)
    assert list(row) == ["test"] and '"quoted"' in capsys.readouterr().out
    args = cli.parser().parse_args(["--template", template, *words(workspace, data, "LinearProbeDHO", tmp_path / "x")])
    trainer = cli.build_trainer(cli.build_config(args))
    assert trainer.classes.ids == tuple(sorted(ODD))
    prompts = ["ein " + id_.replace("_", " ") + ", von Hand" for id_ in sorted(ODD)]
    texts = trainer.vlm.encode_text(trainer.vlm.tokenize(prompts))
    unit = torch.nn.functional.normalize(texts.float(), dim=-1)
    torch.testing.assert_close(trainer.vlm.class_embeddings(trainer.classes.names, trainer.templates()), unit)
    assert read(tmp_path / "out")["labeled"]["images"] == 2 * len(ODD)


def test_two_folders_of_one_name_stay_two_classes_and_are_named_once(workspace, tree, tmp_path, capsys):
    (tree / "classes.txt").write_text("Gneis rock\nbasalt rock\n")
    run(workspace, tree, "LinearProbeDHO", tmp_path / "out")
    out = capsys.readouterr().out
    assert out.count("1 names stand for several classes") == 1 and "rock (Gneis, basalt)" in out
    assert read(tmp_path / "out")["labeled"]["images"] == 12
    dataset, _ = build(tree)
    assert class_list(dataset).names == ("rock", "rock", "chalk 2") and dataset.num_classes == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\ufeffGneis Gneiß\r\n\r\nchalk 2 Kreide 木\r\n".encode(), ("Gneiß", "basalt", "Kreide 木")),
        (b"chalk 2 10\n  \nbasalt {} 'x', y\n", ("Gneis", "{} 'x', y", "10")),
        (b"Gneis rock\n Kreide\n", "line 2: expected '<class folder> <name>', got ' Kreide'"),
        (b"Gneis rock\n\nGneis stone\n", "line 3: 'Gneis' is named in line 1 too"),
        (b"Gneis\trock\n", "line 1: expected"),
        ("Gneis rock\nbasalt Bläue\n".encode("latin-1"), "line 2: not UTF-8"),
        ("Gneis rock\n".encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_classes_txt_is_parsed_or_its_line_is_named(tree, content, expected):
    (tree / "classes.txt").write_bytes(content)
    if isinstance(expected, str):
        refused(tree, "classes.txt", expected)
    else:
        assert class_list(build(tree)[0]).names == expected


def test_classnames_txt_without_an_id(tmp_path):
    (tmp_path / "classnames.txt").write_bytes("\ufeffn1 a\r\n\r\nKäfer\r\n".encode())
    with pytest.raises(UsageError, match="line 3: expected '<wnid> <name>', got 'Käfer'"):
        read_classnames(tmp_path / "classnames.txt")


def test_a_label_that_no_training_image_has(workspace):
    files = sorted(str(path) for path in (workspace / "imagenet/images/train").rglob("*.JPEG"))

    def items(labels):
        return [
            Datum(impath=file, label=label, classname=f"c{label}") for file, label in zip(files, labels, strict=False)
        ]

    assert class_list(DatasetBase(train_x=items([0, 1, 2]), val=[], test=items([2, 1]))).names == ("c0", "c1", "c2")
    for train, test in (([0, 2], [0]), ([0, 1], [0, 1, 2])):
        missing = 1 if 1 not in train else 2
        with pytest.raises(UsageError, match=f"1 classes have no labelled image, first label {missing}"):
            class_list(DatasetBase(train_x=items(train), val=None, test=items(test)))


# The prompt


@pytest.mark.parametrize("wrong", ["a photo", "{} and {}", "a {} {x}", "a {0}", "{{}}", "a {} }", "{:>5}", "{", "{}{"])
def test_a_template_has_one_gap_and_no_other_brace(tree, wrong, tmp_path):
    missing = tmp_path / "nowhere"  # it is refused before anything is looked for
    line = ["--trainer", "CoOp", "--data", str(missing), "--template", wrong]
    with pytest.raises(UsageError, match=r"DATASET.TEMPLATE \(--template\)") as error:
        cli.build_config(cli.parser().parse_args(line))
    assert repr(wrong) in str(error.value)
    with pytest.raises(UsageError, match="key"):
        check_template("key", wrong)
    check_template("key", "a 'photo' of, 100% {}")


def test_a_template_serves_student_zero_shot_and_teacher(workspace, tree, tmp_path):
    template = "a photo of a {}, a kind of rock."

    def made(trainer: str, options: str = ""):
        line = words(workspace, tree, trainer, tmp_path / trainer, options=options)
        return cli.build_trainer(cli.build_config(cli.parser().parse_args(["--template", template, *line])))

    prompts = [template.replace("{}", name) for name in ("Gneis", "basalt", "chalk 2")]

    def expected(vlm):
        return torch.nn.functional.normalize(vlm.encode_text(vlm.tokenize(prompts)).float(), dim=-1)

    zero_shot, probe = made("ZeroshotCLIP"), made("LinearProbeDHO")
    torch.testing.assert_close(zero_shot.ce_head.weight.detach(), expected(zero_shot.vlm))
    torch.testing.assert_close(probe.class_directions(), expected(probe.vlm))
    torch.testing.assert_close(probe.teacher.texts, expected(probe.teacher.vlm))
    own = made("LinearProbeDHO", "TRAINER.DHO.TEACHER.TEMPLATES ('{}',)").teacher
    assert not torch.allclose(own.texts, expected(own.vlm), atol=1e-3)
    context = [made(trainer).ce_head.prompt_learner.ctx for trainer in ("CoOp", "CoOp")]
    plain = cli.build_trainer(cli.build_config(cli.parser().parse_args(words(workspace, tree, "CoOp", tmp_path / "c"))))
    assert torch.equal(context[0], plain.ce_head.prompt_learner.ctx)


def test_a_template_reaches_the_teacher_check_and_attached_trainers(workspace, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(teacher_check, "build_teacher", lambda *args: seen.append(args[2]) or 1 / 0)
    line = runs.words(workspace, "LinearProbeDHO", tmp_path, "", "DATASET.TEMPLATE {}!")
    with pytest.raises(ZeroDivisionError):
        teacher_check.ask(cli.build_config(cli.parser().parse_args(line)))
    assert seen == [("{}!",)]
    assert (
        test_attach.make(workspace, "LogitsHostDHO", tmp_path / "x", options="DATASET.TEMPLATE {}!").kd_template
        == "{}!"
    )


def test_a_template_is_part_of_what_a_run_is(workspace, tree, tmp_path):
    run(workspace, tree, "LinearProbe", tmp_path / "out", template="the {}")
    run(workspace, tree, "LinearProbe", tmp_path / "out", template="the {}")
    with pytest.raises(UsageError, match=r"DATASET.TEMPLATE: 'the \{\}' there, 'a \{\}' now"):
        run(workspace, tree, "LinearProbe", tmp_path / "out", template="a {}")


def test_explain_mentions_the_prompt_and_the_policy(capsys):
    line = ["--explain", "--trainer", "CoOpDHO", "--dataset", "shapes", "--template", "a {}, drawn", "--shots", "2"]
    assert cli.main(line) == 0 and cli.main([*line, "DATASET.FEW", "clip"]) == 0
    out = capsys.readouterr().out
    assert "prompt      a {}, drawn" in out and "zero-shot, the prompt above" in out
    assert "labels      2 images a class" in out and "labels      at most 2 images a class" in out


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "LinearProbeDHO"])
def test_a_prompt_that_the_model_cannot_read_is_named(workspace, tree, tmp_path, trainer):
    long = " ".join(["quartzite"] * 60)
    (tree / "classes.txt").write_text(f"basalt {long}\n")
    with pytest.raises(UsageError, match=rf"reads at most 77: 'a photo of a {long}\.'"):
        run(workspace, tree, trainer, tmp_path / "out")


# What a run does with its sets


def test_a_class_of_fewer_images_than_shots(workspace, tree, tmp_path, capsys):
    (tree / "basalt" / "a" / "b" / "3.png").unlink()
    with pytest.raises(UsageError, match=r"1 classes have fewer training images: basalt \(3\)\. Use at most 3 shots"):
        run(workspace, tree, "LinearProbe", tmp_path / "out", "--shots 4")
    options = "DATASET.FEW clip TRAINER.DHO.UNLABELED False"
    run(workspace, tree, "LinearProbeDHO", tmp_path / "out", "--shots 4", options)
    assert "basalt (3). All of them are taken: 11 labelled images in all" in capsys.readouterr().out
    assert read(tmp_path / "out")["labeled"]["images"] == 11
    with pytest.raises(UsageError, match=r"FEW 'clipp'.*Did you mean 'clip'"):
        config(tree, "DATASET.FEW clipp")
    check_shots(build(tree)[0].train_x, -1, {0: "x", 9: "y"})


def test_the_protocol_of_the_validation_images():
    def said(val: list[int], test: list[int], shots: int, **attributes) -> str:
        class Sets(DatasetBase):
            def __init__(self):
                vars(self).update(_val=items("v", val), _test=items("t", test), **attributes)

        return validation_line(validation_part(Sets(), "/", shots))

    def items(folder: str, labels: list[int]):
        made = [Datum.__new__(Datum) for _ in labels]
        for number, (item, label) in enumerate(zip(made, labels, strict=True)):
            item._impath, item._label = f"/{folder}/{number}", label
        return made

    many = random.Random(0).sample([0, 1, 2] * 100, 300)
    assert said([], [0], 16) == "Validation: none"
    assert said(many, [0], 16) == "Validation: all 300 images of the dataset"
    assert said([0] * 4 + [1] * 4, [0], 16) == "Validation: 8 images, min(K, 4) a class as CoOp draws them"
    assert said([0] * 2 + [1] * 2, [0], 2) == "Validation: 4 images, min(K, 4) a class as CoOp draws them"
    assert said([0] * 4 + [1] * 4, [0], -1) == "Validation: all 8 images of the dataset"
    assert said([0] * 4, [0], 4, validation="own") == "Validation: 4 images of one's own (val/, or rows of split val)"
    part = validation_part(type("Sets", (), {"val": items("v", many), "test": items("v", many)}), "/", 4)
    assert part["protocol"] == "test" and "the test set itself" in validation_line(part)
    assert "300 images" in validation_line(part) and "nothing may be chosen on it" in validation_line(part)


def test_a_run_prints_it_once_as_its_manifest_has_it(workspace, own, tmp_path, capsys):
    (own / "test").rename(own / "val")
    run(workspace, own, "LinearProbeDHO", tmp_path / "a")
    runs.run(workspace, "LinearProbe", tmp_path / "b")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Validation:")]
    assert lines == [validation_line(read(tmp_path / name)["validation"]) for name in "ab"]
    assert [read(tmp_path / name)["validation"]["protocol"] for name in "ab"] == ["own", "test"]


def test_a_run_writes_nothing_among_its_images(workspace, own, tmp_path):
    """As on a dataset that is mounted read-only, which root cannot be kept from by permissions."""

    def state():
        return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in [own, *own.rglob("*")])

    before = state()
    run(workspace, own, "LinearProbeDHO", tmp_path / "out", "--shots 2", "TEST.FINAL_MODEL last_step")
    run(workspace, own, "TipAdapter", tmp_path / "tip", "--shots 2", "TRAINER.TIPADAPTER.CHOOSE fixed")
    assert state() == before and (tmp_path / "out" / "split.json").is_file()
