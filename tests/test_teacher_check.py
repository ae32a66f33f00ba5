"""The verdict on synthetic teachers and on the built-in ones, and the command on the tiny tree."""

from __future__ import annotations

import json

import pytest
import runs
import torch
from torch import Tensor

from dho_plugin import teacher_check
from dho_plugin.__main__ import main as command
from dho_plugin.calibration import accuracy, fit_temperature
from dho_plugin.classes import DEFAULT_TEMPLATE, ClassList
from dho_plugin.datasets.shapes_render import CLASS_NAMES, render
from dho_plugin.errors import UsageError
from dho_plugin.loaders import TestImages
from dho_plugin.runs import load_run
from dho_plugin.teacher_advice import Examination, advise, error_sentences, examine
from dho_plugin.teacher_check import ask, classes_table, confused_pairs, shown_names
from dho_plugin.teachers import ZeroShotTeacher
from dho_plugin.views import INTERPOLATIONS
from dho_plugin.vlm import load_vlm

BICUBIC = INTERPOLATIONS["bicubic"]
CONFUSED = {3: 8, 4: 9, 1: 7, 5: 6}  # as in scripts/digits.py


def teacher(kind: str, k: int = 16, c: int = 10, *, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits whose softmax over `scale` is an honest guess, right for nine of ten images; errors of a kind."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(c).repeat_interleave(k)
    hit = torch.rand(len(labels), generator=generator)
    answers = labels.clone()
    if kind == "confused":
        answers = torch.where(hit < 0.5, torch.tensor([CONFUSED.get(y, y) for y in range(c)])[labels], labels)
    elif kind == "noisy":
        other = (labels + torch.randint(1, c, (len(labels),), generator=generator)) % c
        answers = torch.where(hit < 0.2, other, labels)
    elif kind == "blind":
        answers = torch.randint(0, c, (len(labels),), generator=generator)
    right = max(0.2, min(0.99, answers.eq(labels).double().mean().item()))
    margin = torch.tensor((c - 1) * right / (1 - right)).log()
    return scale * margin * torch.nn.functional.one_hot(answers, c), labels


def seen(kind: str, **settings) -> Examination:
    return examine(*teacher(kind, **settings))


@pytest.mark.parametrize(("kind", "verdict"), [("confused", "systematic"), ("noisy", "scattered"), ("clean", "none")])
def test_the_kind_of_errors_decides_alpha_and_beta(kind, verdict):
    examined = seen(kind)
    assert examined.kind == verdict
    advice = advise(examined, zeta=0.01)
    if kind == "confused":
        assert advice.settings == {"ALPHA": 0.5, "BETA": 1.0}
        assert "systematic way" in advice.sentences[0] and "CHOOSE val" in advice.sentences[0]
    else:
        assert advice.settings == {"ALPHA": 0.4, "BETA": 0.5} and "CEKD" in advice.sentences[0]
        assert advise(examined, zeta=None).settings["ALPHA"] == 0.2
    assert "scripts/digits.py" in advice.sentences[0]


def test_few_systematic_errors_gain_no_more_than_there_are():
    logits, labels = teacher("clean", k=16, c=40)
    logits[:12] = logits[16].clone()  # three quarters of the first class are called the second
    examined = examine(logits, labels)
    assert examined.kind == "systematic" and 1 < examined.systematic_points < 12 / 640 * 100
    advice = advise(examined, zeta=0.01)
    assert advice.settings["ALPHA"] == 0.4 and f"{examined.systematic_points:.1f} %" in advice.sentences[0]


@pytest.mark.parametrize(("scale", "verdict", "wanted"), [(0.3, "too low", 0.003), (4.0, "too high", 0.04)])
def test_zeta_that_would_calibrate(scale, verdict, wanted):
    logits, labels = teacher("noisy", k=60, scale=scale)
    examined = examine(logits, labels)
    assert examined.honesty == verdict
    advice = advise(examined, zeta=0.01)
    assert advice.settings["ZETA"] == pytest.approx(wanted, rel=0.05)
    again = examine(logits * 0.01 / advice.settings["ZETA"], labels)
    assert again.honesty == "fits" and again.calibration_error < 0.05 < examined.calibration_error
    assert "ZETA" not in advise(examined, zeta=None).settings


def test_an_honest_teacher_keeps_its_zeta():
    examined = seen("noisy", k=60)
    assert examined.honesty == "fits" and "ZETA" not in advise(examined, zeta=0.01).settings
    logits, labels = teacher("clean", scale=0.3)
    assert fit_temperature(logits, labels) is None
    assert "keep it" in advise(examine(logits, labels), zeta=0.01).sentences[1]


def test_a_teacher_that_guesses_is_not_distilled():
    advice = advise(seen("blind", k=40), zeta=0.01)
    assert advice.settings == {} and advice.sentences[0].startswith("Do not distil")
    assert "Check class names and templates" in advice.sentences[0]


def test_too_few_images_say_little():
    four = examine(*teacher("clean", k=1, c=4))
    assert four.kind == "none" and "class by class" in error_sentences(four)[0]
    assert advise(four, zeta=0.01).settings == {}  # all right, but of four images
    two = seen("confused", k=2)
    assert two.kind == "unclear" and "Too few errors" in error_sentences(two)[0]
    assert "too few images" in advise(two, zeta=0.01).sentences[0]
    guesses = advise(examine(torch.eye(4)[[0, 0, 1, 3]], torch.arange(4)), zeta=0.01)
    assert "do not tell the teacher from guessing" in guesses.sentences[0] and guesses.settings == {}


def test_few_errors_of_many_images_matter_little():
    logits, labels = teacher("clean", k=10)
    logits[[5, 77]] = logits[[55, 33]]
    examined = examine(logits, labels)
    assert examined.kind == "unclear" and advise(examined, zeta=0.01).settings["ALPHA"] == 0.4


def test_the_built_in_student_as_teacher_confuses_systematically():
    labels = torch.arange(len(CLASS_NAMES)).repeat(16)
    images = render("train", labels, torch.arange(len(labels)), seed=3)
    vlm = load_vlm("shapes-student")
    logits = ZeroShotTeacher(vlm, CLASS_NAMES, (DEFAULT_TEMPLATE,), zeta=0.01)(images)
    examined = examine(logits, labels)
    assert examined.kind == "systematic" and advise(examined, zeta=0.01).settings["ALPHA"] == 0.5
    exchanged = {frozenset(("circle", "oval")), frozenset(("square", "rectangle"))}
    first = [frozenset(CLASS_NAMES[c].split()[1] for c in pair[:2]) for pair in confused_pairs(examined.counts)[:10]]
    assert sum(pair in exchanged for pair in first) >= 4


def test_worst_classes_come_first():
    counts = torch.tensor([[3, 1, 0], [0, 4, 0], [1, 2, 1]])
    table = classes_table(counts, ["a", "b", "c"])
    assert table.lines == (("c", "1 of 4", "b (2 of 3)"), ("a", "3 of 4", "b (1 of 1)"))
    assert confused_pairs(counts) == [(2, 1, 2), (0, 1, 1), (2, 0, 1)]


def test_a_name_that_two_classes_share_is_shown_with_its_id():
    assert shown_names(ClassList(("n1", "n2", "n3"), ("crane", "crane", "tank"))) == [
        "crane (n1)",
        "crane (n2)",
        "tank",
    ]


def flags(workspace, extra: str = "") -> list[str]:
    return (
        f"--dataset imagenet --root {workspace} --shots 2 --teacher {workspace}/teacher.pt {extra} "
        "DATALOADER.NUM_WORKERS 0 INPUT.INTERPOLATION bicubic"
    ).split()


def configured(words: list[str]):
    return runs.cli.build_config(runs.cli.parser().parse_args(["--trainer", "StudentDHO", *words]))


def test_it_looks_at_the_images_that_a_run_would_label(workspace, tmp_path):
    trainer = runs.make(workspace, "StudentDHO", tmp_path / "a", "--seed 3", "INPUT.INTERPOLATION bicubic")
    answers = ask(configured(flags(workspace, "--seed 3")))
    items = trainer.dm.dataset.train_x
    views = TestImages(items, size=trainer.teacher.size, interpolation=BICUBIC)
    assert answers.labels.tolist() == [item.label for item in items] and len(items) == 12
    expected = trainer.teacher(torch.stack([view["img"] for view in views]))
    torch.testing.assert_close(answers.logits, expected, atol=1e-3, rtol=1e-3)


def test_the_command_prints_and_writes_the_same_numbers(workspace, tmp_path, capsys):
    file = tmp_path / "seen.json"
    assert command(["teacher-check", *flags(workspace, f"--json {file}")]) == 0
    said, numbers = capsys.readouterr(), json.loads(file.read_text())
    answers = ask(configured(flags(workspace)))
    assert numbers["accuracy"] == accuracy(answers.logits, answers.labels) and numbers["images"] == 12
    assert sum(entry["right"] for entry in numbers["classes"]) == round(12 * numbers["accuracy"])
    assert sum(entry["images"] for entry in numbers["confusions"]) == numbers["errors"]["number"]
    for part in ("| 12 images, 6 classes", "coarse for 12 images", "true -> predicted", numbers["advice"][0][:30]):
        assert part in said.out, part
    assert "12 of 12 images" in said.err


def test_a_run_as_teacher_is_looked_at_on_validation_images(workspace, tmp_path, monkeypatch, capsys):
    runs.run(workspace, "LinearProbe", tmp_path / "run")
    words = [*flags(workspace), "TRAINER.DHO.TEACHER.NAME", str(tmp_path / "run")]
    with pytest.raises(UsageError, match=r"run was trained on labels.*its test set as validation set"):
        ask(configured(words))
    monkeypatch.setattr(teacher_check, "check_validation", lambda *_, **__: None)
    cfg = configured(words)
    answers = ask(cfg)
    assert answers.images.startswith("validation images")
    trainer = load_run(tmp_path / "run")
    views = TestImages(trainer.dm.dataset.val, size=trainer.student.image.size, interpolation=BICUBIC)
    images = torch.stack([view["img"] for view in views])
    torch.testing.assert_close(answers.logits, trainer.class_logits(trainer.student.normalize(images)))
    assert teacher_check.zeta_of(cfg) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--teacher shapes-techer", "Did you mean 'shapes-teacher'"),
        ("--shots 50", "6 classes have fewer training images"),
        ("--json nowhere/seen.json", "no such folder"),
        ("TRAINER.DHO.ZETA -1.0", "ZETA must be positive"),
    ],
)
def test_mistakes_are_said_before_the_teacher_is_loaded(workspace, monkeypatch, capsys, change, message):
    monkeypatch.setattr(teacher_check, "build_teacher", None)
    words = flags(workspace)
    place = len(words) if change.startswith("TRAINER") else words.index("DATALOADER.NUM_WORKERS")
    assert command(["teacher-check", *words[:place], *change.split(), *words[place:]]) == 2
    assert message in capsys.readouterr().err
