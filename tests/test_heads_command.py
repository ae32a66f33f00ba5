"""`python -m dho_plugin heads` on finished runs: what it prints, what it leaves, what it refuses."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import runs

from dho_plugin.__main__ import main
from dho_plugin.analysis.answers import answers_of
from dho_plugin.errors import UsageError
from dho_plugin.interpolation import search_alpha_beta

TABLES = ("map", "ablation", "agreement", "calibration", "per_class", "retention")
FIGURES = ("map", "ablation", "agreement", "confidence", "reliability", "per_class", "retention")


@pytest.fixture(scope="module")
def finished(workspace, tmp_path_factory):
    """Two seeds of StudentDHO and one of the control, with the accuracies of the first."""
    folder = tmp_path_factory.mktemp("heads")
    row = runs.run(workspace, "StudentDHO", folder / "dho" / "seed1", "--ood --seed 1")
    runs.run(workspace, "StudentDHO", folder / "dho" / "seed2", "--seed 2")
    runs.run(workspace, "CE", folder / "ce", "--seed 1")
    return folder, row


def heads(*words) -> int:
    return main(["heads", *map(str, words)])


def test_a_run_is_examined(finished, capsys):
    folder, row = finished
    run = folder / "dho" / "seed1"
    assert heads(run, "--control", folder / "ce") == 0
    printed, out = capsys.readouterr().out, run / "heads"
    assert (out / "heads.md").read_text() in f"{printed}\n"
    assert {path.name for path in out.iterdir()} == {
        "heads.md",
        "heads.json",
        *(f"{name}.csv" for name in TABLES),
        *(f"{name}.{ending}" for name in FIGURES for ending in ("svg", "png")),
    }
    (found,) = json.loads((out / "heads.json").read_text())["runs"]
    assert found["accuracy"]["combined (fixed)"] == pytest.approx(row)
    assert found["heads"]["ablation"]["combined (fixed)"] == pytest.approx(row["test"])
    answers = answers_of(run)
    best = search_alpha_beta(answers.logits, answers.labels, split="test", allow_oracle=True)
    assert found["heads"]["points"][-1] == {**best._asdict(), "source": "oracle", "own": False}
    assert "Alpha 0.4 and beta 0.5, fixed by the configuration." in printed
    assert "the test set itself (as CoOp returns it for ImageNet): nothing may be chosen on it." in printed
    assert "Not searched: alpha and beta on validation images: this dataset returns its test set" in printed
    assert "| validation" not in printed and f"Control: {folder / 'ce'}: CE on ImageNet, seed 1" in printed


def test_two_drawings_are_the_same_files(finished, tmp_path):
    folder, _ = finished
    for name in ("a", "b"):
        heads(folder / "dho" / "seed1", "--output-dir", tmp_path / name, "--no-ood")
    for path in sorted((tmp_path / "a").glob("*.[sc]*v*")):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_seeds_are_averaged(finished, capsys):
    folder, _ = finished
    assert heads(folder / "dho" / "seed1", folder / "dho" / "seed2", "--no-ood") == 0
    assert "seed 2, 12 labelled and 12 unlabelled images" in capsys.readouterr().out
    out = folder / "dho" / "heads"
    found = json.loads((out / "heads.json").read_text())["runs"]
    lines = dict(line.split(",", 2)[::2] for line in (out / "ablation.csv").read_text().splitlines() if "head" in line)
    both = [one["heads"]["ablation"]["CE head"] for one in found]
    assert lines["CE head"].split(",")[-3:][0] == f"{sum(both) / 2:.6g}"


def test_one_head_is_examined_as_far_as_it_goes(finished, capsys):
    folder, _ = finished
    assert heads(folder / "ce", "--control", folder / "dho" / "seed1") == 0
    printed = capsys.readouterr().out
    assert printed.count("This run has one head: the alpha-beta map, the ablation and the agreement") == 1
    assert "| the one head |" in printed and "Fig. 10" not in printed
    names = {path.stem for path in (folder / "ce" / "heads").iterdir()}
    assert names == {"heads", "calibration", "confidence", "reliability", "per_class", "retention"}


def test_the_students_own_zero_shot_answers_are_a_control(finished, capsys):
    folder, _ = finished
    assert heads(folder / "dho" / "seed1", "--control", "zero-shot", "--output-dir", folder / "zero") == 0
    assert "student.safetensors, the student before its training, by class names." in capsys.readouterr().out
    (found,) = json.loads((folder / "zero" / "heads.json").read_text())["runs"]
    assert set(found["accuracy"]["control"]) == {"test", "V2", "Sketch", "R", "A"}


def test_caveats_stand_in_tables_and_figures(workspace, tmp_path, capsys):
    run = tmp_path / "run"
    runs.run(workspace, "LinearProbeDHO", run, "", "TRAINER.DHO.CHOOSE oracle")
    said = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**said, "transductive": True}))
    assert heads(run, "--no-ood") == 0
    printed = capsys.readouterr().out
    assert "TRANSDUCTIVE: it has learned from test images" in printed
    assert "| top-1 on test (oracle, transductive), % |" in printed
    assert "chosen on the TEST images: an oracle, not a result" in printed
    assert "combined (fixed)" not in printed and "combined (oracle) minus CE head" in printed
    for name in ("map", "ablation", "agreement", "confidence", "reliability", "per_class"):
        assert "test (oracle, transductive)" in (run / "heads" / f"{name}.svg").read_text(), name
    assert heads(run, "--control", run) == 2
    assert "its alpha and beta are an oracle's" in capsys.readouterr().err


def test_a_shift_that_is_missing_is_said(finished, workspace, tmp_path, capsys):
    folder, _ = finished
    root = tmp_path / "root"
    shutil.copytree(workspace / "imagenet", root / "imagenet")
    shutil.copytree(workspace / "imagenetv2", root / "imagenetv2")
    run = shutil.copytree(folder / "dho" / "seed2", tmp_path / "run")
    assert heads(run, "--root", root) == 0
    printed = capsys.readouterr().out
    assert "Sketch is missing: " in printed and "| top-1            | test, % | V2, % |" in printed


def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(finished, monkeypatch, capsys):
    folder, _ = finished
    one, two = folder / "dho" / "seed1", folder / "dho" / "seed2"
    monkeypatch.setattr("dho_plugin.analysis.heads.examine", lambda *_, **__: pytest.fail("examined"))
    for words, message in (
        ([one, one], "the runs have the seeds [1, 1]"),
        ([one, folder / "ce"], "TRAINER.NAME is 'CE', and 'StudentDHO'"),
        ([one, "--split", "sketch"], "Did you mean 'Sketch'?"),
        ([one, two, "--control", one, two, one], "--control: 3 for 2 runs"),
        ([one, "--control", folder], "no run in"),
        ([folder], "no run in"),
        ([one, "--bins", "0"], "--bins 0"),
    ):
        assert heads(*words) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert heads(one) == 2
    assert "dho_plugin[report]" in capsys.readouterr().err


def test_a_student_without_texts_has_no_zero_shot_answers(finished, workspace, tmp_path):
    runs.run(workspace, "CE", tmp_path, "--backbone timm/test_resnet", "OPTIM.MAX_EPOCH 1")
    from dho_plugin.analysis.heads import check, parser

    with pytest.raises(UsageError, match=r"--control zero-shot: timm/test_resnet is no CLIP model"):
        check(parser().parse_args([str(tmp_path), "--control", "zero-shot"]))
