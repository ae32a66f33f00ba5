"""The command `conflict`: what it trains, what it draws, and what it says of runs whose numbers are known."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch

from dho_plugin import cli
from dho_plugin.__main__ import main as command
from dho_plugin.analysis import drawing
from dho_plugin.analysis.conflict_figure import Run, curves, draw, smoothed, window
from dho_plugin.analysis.conflict_log import MEASURES, Observation, append
from dho_plugin.tables import conflict, sweep
from dho_plugin.tables.conflict_text import apart, late, late_table, verdict


def line(step: int, value: float) -> Observation:
    return Observation(1, step, *[value] * len(MEASURES))


@pytest.fixture
def pretended(monkeypatch):
    """Trainings in this process that leave what the function in the returned list gives for a run and a step."""
    given = [lambda cfg, step: (-0.5 if cfg.TRAINER.NAME == "CEKD" else 0.25) - cfg.SEED / 100]

    def run(cfg, args):
        for step in [1, *range(5, 1 + 5 * cfg.OPTIM.MAX_EPOCH, 5)] if given[0] else []:
            append(Path(cfg.OUTPUT_DIR), line(step, given[0](cfg, step)))
        return {"test": 50.0 + cfg.SEED}

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(conflict, "check_data", lambda cells: None)
    # Those of this process would stay, and a child that later tests fork of it would wait for them for ever.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return given


def configurations(words: str, capsys):
    """The configuration of each command line of a dry run, by the folder of its row."""
    assert command(["conflict", "--dry-run", *words.split()]) == 0
    lines = [one for one in capsys.readouterr().out.splitlines() if not one.startswith("#")]
    found = [cli.build_config(cli.parser().parse_args(shlex.split(one)[2:])) for one in lines]
    return {(Path(cfg.OUTPUT_DIR).parent.name, cfg.SEED): cfg for cfg in found}


def test_one_head_and_two_learn_from_the_same(tmp_path, capsys):
    found = configurations(f"--seeds 1 2 --shots 4 --output-dir {tmp_path} TRAINER.DHO.LAMBDA 0.3", capsys)
    assert list(found) == [(row, seed) for row in ("CEKD", "StudentDHO") for seed in (1, 2)]
    for seed in (1, 2):
        one, other = (dict(found[row, seed]) for row in conflict.TRAINERS)
        assert {key for key in one if one[key] != other[key]} == {"OUTPUT_DIR", "TRAINER"}
        for cfg in (one, other):
            assert cfg["DATASET"].NUM_SHOTS == 4 and cfg["TRAIN"].CONFLICT_FREQ == 5
            assert cfg["TRAINER"].DHO.LAMBDA == 0.3 and cfg["TRAINER"].DHO.TEACHER.NAME == "shapes-teacher"


def test_options_and_flags_win_over_the_commands_own(tmp_path, capsys):
    words = f"--trainers VPT VPTDHO --seeds 3 --output-dir {tmp_path} --teacher shapes-student TRAIN.CONFLICT_FREQ 2"
    found = configurations(words, capsys)
    assert list(found) == [("VPT", 3), ("VPTDHO", 3)]
    assert all(cfg.TRAIN.CONFLICT_FREQ == 2 for cfg in found.values())
    assert found["VPTDHO", 3].TRAINER.DHO.TEACHER.NAME == "shapes-student"
    assert list(configurations(f"--rows dho --seeds 1 --output-dir {tmp_path}", capsys)) == [("StudentDHO", 1)]


def test_on_digits_a_teacher_is_trained_before_on_images_of_its_own(tmp_path, capsys):
    found = configurations(f"--datasets digits shapes --seeds 1 --shots 2 --output-dir {tmp_path}", capsys)
    teacher, student = found["teacher", 1], found["CEKD", 1]
    assert teacher.DATASET.NAME == "DigitsConfused" and teacher.DATASET.NUM_SHOTS != 2
    assert student.DATASET.NAME == "Shapes"  # the last of that name
    assert student.OUTPUT_DIR.startswith(f"{tmp_path}/shapes/")
    noisy = configurations(f"--dataset digits --teacher noisy --seeds 1 --output-dir {tmp_path}/noisy", capsys)
    assert noisy["teacher", 1].DATASET.NAME == "DigitsNoisy"
    assert noisy["CEKD", 1].TRAINER.DHO.TEACHER.NAME == noisy["teacher", 1].OUTPUT_DIR


def test_files_and_words(tmp_path, capsys, pretended):
    words = (
        f"--seeds 1 2 3 --jobs 1 --output-dir {tmp_path}/out --table {tmp_path}/t.md --json {tmp_path}/t.json "
        f"--figure {tmp_path}/docs OPTIM.MAX_EPOCH 8"
    )
    assert command(["conflict", *words.split()]) == 0
    shown = capsys.readouterr().out
    document = (tmp_path / "out/conflict.md").read_text()
    assert document.strip() in shown and f"    python -m dho_plugin conflict {words}" in document
    assert "](conflict.svg)" in document and "](docs.svg)" in (tmp_path / "t.md").read_text()
    for name in ("out/conflict", "docs"):
        assert (tmp_path / f"{name}.svg").read_text().count(">CEKD</text>") == 1
        assert (tmp_path / f"{name}.png").is_file()
    lines = [one for one in document.splitlines() if one.startswith("| top-1 on the test set, %")]
    assert [one.replace(" ", "").split("|")[2:-1] for one in lines] == [
        [row, "51", "52", "53", "52±1"] for row in conflict.TRAINERS
    ]
    assert "at 9 of 40 steps, smoothed over 1" in document
    assert (
        "* CEKD: the late cosine over the shared parameters is -0.52 ±0.01, below zero in 3 of 3 runs and in 100 % of "
        "the late steps looked at. The paper has it below zero, which is so in all of them."
    ) in document
    assert (
        "* StudentDHO: the late cosine over the shared parameters is 0.23 ±0.01, below zero in 0 of 3 runs and in 0 % "
        "of the late steps looked at. The paper has it above zero, which is so in all of them."
    ) in document
    assert "* StudentDHO minus CEKD: +0.75 ±0.00 (paired by seed, ± its standard error), more than two" in document
    rows = list(csv.DictReader((tmp_path / "out/conflict.csv").open()))
    assert len(rows) == 2 * 3 * 9
    assert rows[0]["dataset"] == "shapes" and rows[0]["trainer"] == "CEKD" and rows[0]["cosine"] == "-0.51"
    assert [{k: str(v) for k, v in one.items()} for one in json.loads((tmp_path / "t.json").read_text())] == rows


def test_several_data_sets_have_a_table_each_and_name_their_teachers(tmp_path, capsys, pretended):
    words = f"--datasets digits shapes --seeds 1 --shots 1 --jobs 1 --output-dir {tmp_path} OPTIM.MAX_EPOCH 8"
    assert command(["conflict", *words.split()]) == 0
    document = (tmp_path / "conflict.md").read_text()
    assert "1 labelled image a class" in document
    assert "Student: timm/test_resnet; teacher: CE on digits_confused, one for each seed; shapes-teacher." in document
    assert document.index("## digits") < document.index("## shapes")


def test_what_is_finished_is_kept(tmp_path, capsys, pretended):
    words = ["conflict", "--seeds", "1", "--jobs", "1", "--output-dir", str(tmp_path), "OPTIM.MAX_EPOCH", "4"]
    assert command(words) == 0
    kept = (tmp_path / "conflict.md").read_text()
    capsys.readouterr()
    assert command(words) == 0
    assert capsys.readouterr().out.count("(finished before)") == 2
    assert (tmp_path / "conflict.md").read_text() == kept


def test_claims_that_do_not_hold_are_said_not_to():
    def run(row: str, seed: int, *values: float) -> Run:
        return Run("shapes", row, seed, [line(step, value) for step, value in enumerate(values, 1)])

    one = [run("CEKD", 1, 0, 0, 0, 0.5), run("CEKD", 2, 0, 0, 0, -0.5)]
    assert "0.00 ±0.71, below zero in 1 of 2 runs and in 50 %" in verdict(one, "CEKD")
    assert "The paper has it below zero, which is so in 1 of them." in verdict(one, "CEKD")
    assert verdict([run("CEKD", 1, -1, -1, -1, 0.5)], "CEKD").endswith("so in none of them.")
    assert verdict([run("StudentDHO", 1, 1, 1, 1, -0.5)], "StudentDHO").endswith("so in none of them.")
    assert verdict([run("VPTDHO", 1, 1, 1, 1, -0.5)], "VPTDHO").endswith("late steps looked at.")
    nothing = "no parameter is shared by an L_CE and an L_KD"
    assert nothing in verdict([run("CoOpDHO", 1, *[float("nan")] * 4)], "CoOpDHO")
    assert nothing in verdict([Run("shapes", "CE", 1, [])], "CE")


def test_differences_are_paired_by_seed():
    def run(row: str, dataset: str, seed: int, value: float) -> Run:
        return Run(dataset, row, seed, [line(step, value) for step in (1, 2, 3, 4)])

    runs = [run("CEKD", "shapes", 1, 0.1), run("CEKD", "shapes", 2, 0.5), run("CEKD", "digits", 1, 0.3)]
    runs += [run("VPTDHO", "shapes", 1, 0.3), run("VPTDHO", "shapes", 2, 0.6), run("VPTDHO", "shapes", 3, 9.0)]
    assert apart(runs[:2] + runs[3:], "VPTDHO", "CEKD").startswith("VPTDHO minus CEKD: +0.15 ±0.05 ")
    assert apart(runs[:2] + runs[3:], "VPTDHO", "CEKD").endswith(" more than two of these from zero.")
    assert "too few runs of both" in apart(runs, "VPTDHO", "CEKD")  # of which digits has none


def test_late_is_the_last_quarter_of_the_steps():
    steps = [1, 10, 20, 30, 31, 35, 40]
    run = Run("shapes", "CEKD", 1, [line(step, float(step)) for step in steps])
    assert late(run, "cosine") == mean([31, 35, 40])
    other = Run("shapes", "CEKD", 2, [line(step, -float(step)) for step in steps])
    table = late_table([run, other], ["CEKD"])
    assert table.header == ("last quarter of training", "trainer", "seed 1", "seed 2", "mean")
    expected = mean([31, 35, 40])
    assert table.lines[0][1:] == (
        "CEKD",
        f"{expected:.3g}",
        f"-{expected:.3g}",
        f"0 ±{stdev([expected, -expected]):.3g}",
    )


def test_a_running_mean_is_centred_and_of_fewer_at_the_ends():
    assert [window(count) for count in (5, 20, 41, 100)] == [1, 1, 3, 5]
    values = np.arange(41.0) ** 2
    found = smoothed(values)
    assert found[0] == mean(values[:2]) and found[-1] == mean(values[-2:])
    assert found[30] == mean(values[29:32])


def test_runs_of_other_steps_meet_at_shares_of_the_training():
    def ramp(top: int) -> Run:
        return Run("shapes", "CEKD", top, [line(step, step / top) for step in range(1, top + 1)])

    where, values = curves([ramp(10), ramp(10)], "cosine")
    assert where.tolist() == list(range(1, 11)) and values.shape == (2, 10)
    where, values = curves([ramp(10), ramp(20)], "cosine")
    assert where[[0, 50, 100]].tolist() == [0, 50, 100] and values.shape == (2, 101)
    np.testing.assert_allclose(values[:, 50], 0.5)


def test_a_band_is_the_deviation_over_runs_and_one_run_has_none():
    runs = [Run("shapes", "CEKD", seed, [line(step, float(seed)) for step in (1, 2, 3)]) for seed in (1, 3)]
    with drawing.styled():
        axis = draw(runs, ["CEKD"]).axes[1]
        alone = draw(runs[:1], ["CEKD"]).axes[1]
    (band,) = axis.collections
    heights = sorted({round(y, 6) for _, y in band.get_paths()[0].vertices})
    assert heights == [round(2 - 2**0.5, 6), round(2 + 2**0.5, 6)]
    assert axis.lines[1].get_ydata().tolist() == [2, 2, 2] and not alone.collections


def test_trainers_without_both_losses_are_named_and_not_drawn(tmp_path, capsys, pretended):
    pretended[0] = None
    words = ["conflict", "--trainers", "CE", "--seeds", "1", "--jobs", "1", "--output-dir", str(tmp_path)]
    assert command(words) == 0
    assert "No run has an L_CE beside an L_KD to compare." in capsys.readouterr().out
    assert not (tmp_path / "conflict.svg").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--trainers CEKD CEKD", "--trainers CEKD CEKD: expected different names"),
        ("--datasets shapes shapes", "--datasets shapes shapes: expected different names"),
        ("--trainers CEDK", "Did you mean 'CEKD'"),
        ("--shots 0", "--shots 0: expected a number from 1 on"),
        ("--seeds 1 1", "--seeds 1 1"),
        ("--figure nowhere/at/all", "there is no folder"),
        ("--dataset digits --teacher wrong", "--teacher 'wrong'"),
        ("TRAINER.NAME CE", "TRAINER.NAME is what the rows"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, pretended, words, said):
    assert command(["conflict", "--output-dir", str(tmp_path), *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_matplotlib_is_asked_for_before_anything_is_trained(tmp_path, capsys, pretended, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command(["conflict", "--seeds", "1", "--output-dir", str(tmp_path)]) == 2
    assert "dho_plugin[report]" in capsys.readouterr().err and not list(tmp_path.rglob("log.txt"))
