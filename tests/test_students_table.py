from __future__ import annotations

import csv
import json
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest
import runs

from dho_plugin import cli
from dho_plugin.__main__ import main as command
from dho_plugin.errors import UsageError
from dho_plugin.host import TRAINER_REGISTRY
from dho_plugin.tables import by_shots, students, sweep
from dho_plugin.tables.by_shots import Block, Job, enter, plan_blocks, section
from dho_plugin.tables.cells import LOG, Method, Outcome
from dho_plugin.tables.students_rows import (
    DHO_F,
    FEW_SHOT,
    KINDS,
    PAPER,
    RIVALS,
    TRAINED,
    ZERO_SHOT,
    clip_teacher,
    paper,
    rows,
    trained_teacher,
)
from dho_plugin.tables.summary import Record

DHO = "DHO"


@pytest.fixture
def pretended(monkeypatch):
    """Trainings in this process that end at the accuracy that the function in the returned list gives for a run."""
    given = [lambda cfg: 50.0 + cfg.SEED]
    monkeypatch.setattr(cli, "run", lambda cfg, args: {"test": given[0](cfg)})
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(by_shots, "check_training_sets", lambda cells: None)
    return given


def configurations(shown: str):
    """The configuration of each command line that a dry run printed."""
    words = [shlex.split(line)[2:] for line in shown.splitlines() if not line.startswith("#")]
    return [cli.build_config(cli.parser().parse_args(line)) for line in words]


def test_the_papers_numbers():
    """Spot values of Table 1."""
    assert PAPER["ResNet-18"]["CE"] == (0.7, 1.1, 1.8, 3.4, 8.2)
    assert PAPER["ResNet-18"][DHO] == (51.8, 52.4, 52.6, 53.3, 54.5)
    assert PAPER["ResNet-18"]["CEKDFeature"][0] == 17.1 and PAPER["ResNet-50"]["CEKDFeature"][4] == 54.3
    assert PAPER["ResNet-50"]["SSKD"] == (55.2, 58.1, 60.0, 62.3, 64.0)
    assert PAPER["ResNet-50"][DHO_F] == (62.3, 63.1, 63.9, 65.5, 66.8)
    assert "SSKD" not in PAPER["ResNet-18"] and all(len(row) == 5 for table in PAPER.values() for row in table.values())
    some = paper("ResNet-50", (16, 3, 1))
    assert some.columns == ("16-shot", "3-shot", "1-shot")
    assert [some.value("CE", place) for place in range(3)] == [47.0, None, 11.4]


def test_the_rows_under_a_clip_teacher():
    methods = {method.row: method for method in rows(clip_teacher("T"))}
    assert list(methods) == [ZERO_SHOT, FEW_SHOT, *RIVALS, DHO, DHO_F]
    assert methods["CE"].flags == ("--trainer", "CE")
    assert methods["CEKD"].flags == ("--trainer", "CEKD", "--teacher", "T")
    assert methods[ZERO_SHOT].same_for == ("shots",) and not methods[ZERO_SHOT].seeded
    assert (methods[DHO_F].after, methods[DHO_F].flags[-1]) == (FEW_SHOT, "{after}")
    assert methods[DHO].options == ("TRAINER.DHO.ALPHA", "0.4", "TRAINER.DHO.BETA", "0.5")
    assert methods[DHO_F].options[1] == "0.2"
    assert {method.flags[1] for method in methods.values()} <= set(TRAINER_REGISTRY.registered_names())


def test_the_rows_under_a_teacher_that_we_train():
    methods = {method.row: method for method in rows(trained_teacher("digits", "noisy"))}
    assert list(methods) == [TRAINED, *RIVALS, DHO]
    assert methods[TRAINED].flags == ("--trainer", "CE", "--dataset", "digits_noisy")
    assert [row for row, method in methods.items() if method.after] == [*RIVALS[1:], DHO]
    assert methods[DHO].options == ("TRAINER.DHO.TEACHER.OTHER_LABELS", "True")


def test_a_dry_run_on_shapes(tmp_path, capsys):
    words = f"students --dataset shapes --shots 1 4 --seeds 1 2 --output-dir {tmp_path}/out --dry-run OPTIM.LR 0.5"
    assert command(words.split()) == 0
    cfgs = configurations(capsys.readouterr().out)
    assert len(cfgs) == 1 + 2 * 2 * 10 and {cfg.OPTIM.LR for cfg in cfgs} == {0.5}
    zero_shot = [cfg for cfg in cfgs if cfg.TRAINER.NAME == "ZeroshotCLIP"]
    assert [cfg.MODEL.BACKBONE.NAME for cfg in zero_shot] == ["shapes-teacher"]
    adapters = {(cfg.DATASET.NUM_SHOTS, cfg.SEED): cfg for cfg in cfgs if cfg.TRAINER.NAME == "TipAdapterF"}
    assert {cfg.MODEL.BACKBONE.NAME for cfg in adapters.values()} == {"shapes-teacher"}
    students = [cfg for cfg in cfgs if cfg.TRAINER.NAME == "StudentDHO"]
    assert {cfg.MODEL.BACKBONE.NAME for cfg in students} == {"timm/test_resnet"}
    few = {(cfg.DATASET.NUM_SHOTS, cfg.SEED): cfg for cfg in students if cfg.TRAINER.DHO.ALPHA == 0.2}
    assert len(few) == 4
    for place, cfg in few.items():
        assert cfg.TRAINER.DHO.TEACHER.NAME == adapters[place].OUTPUT_DIR
    assert len({cfg.OUTPUT_DIR for cfg in cfgs}) == len(cfgs)
    assert f"{tmp_path}/out/shots4/CEKD/seed2" in {cfg.OUTPUT_DIR for cfg in cfgs}
    assert not (tmp_path / "out").exists()


def test_a_dry_run_on_digits_trains_a_teacher_a_kind_and_seed(tmp_path, capsys):
    words = (
        f"students --dataset digits --shots 1 2 --seeds 1 2 --output-dir {tmp_path} --dry-run --teachers noisy clean"
    )
    assert command([*words.split(), "OPTIM.LR", "0.5"]) == 0
    cfgs = configurations(capsys.readouterr().out)
    teachers = {cfg.OUTPUT_DIR: cfg for cfg in cfgs if cfg.DATASET.NAME != "Digits"}
    assert sorted((cfg.DATASET.NAME, cfg.SEED) for cfg in teachers.values()) == [
        *(("DigitsClean", 1), ("DigitsClean", 2), ("DigitsNoisy", 1), ("DigitsNoisy", 2))
    ]
    alone = [cfg for cfg in cfgs if cfg.TRAINER.NAME == "CE" and cfg.DATASET.NAME == "Digits"]
    assert len(alone) == 2 * 2  # for both teachers at once
    taught = [cfg for cfg in cfgs if cfg.TRAINER.NAME == "SSKD"]
    assert len(taught) == 2 * 2 * 2
    for cfg in taught:
        assert cfg.TRAINER.DHO.TEACHER.OTHER_LABELS and teachers[cfg.TRAINER.DHO.TEACHER.NAME].SEED == cfg.SEED
    assert {cfg.OPTIM.LR for cfg in cfgs} == {0.5}


def test_a_dry_run_needs_no_weights(capsys):
    assert (
        command(
            ["students", *["--dataset", "imagenet", "--root", "nowhere", "--shots", "16", "--seeds", "1", "--dry-run"]]
        )
        == 0
    )
    cfgs = configurations(capsys.readouterr().out)
    assert {cfg.MODEL.BACKBONE.NAME for cfg in cfgs if "DHO" in cfg.TRAINER.NAME} == {"resnet18"}
    assert len(cfgs) == 11


def score(cfg) -> float:
    """DHO is 2 above CEKD with the confused teacher and 3 below it with the clean one, and 1 below SSKD with both."""
    if cfg.DATASET.NAME != "Digits":
        return 80.0 + cfg.SEED
    kind = 0.0 if "confused" in cfg.TRAINER.DHO.TEACHER.NAME else 5.0
    base = {"CEKD": 60.0 + kind, "StudentDHO": 62.0, "SSKD": 63.0, "CE": 40.0}.get(cfg.TRAINER.NAME, 50.0)
    return base + cfg.SEED + 0.1 * cfg.DATASET.NUM_SHOTS + (0.1 * cfg.SEED if cfg.TRAINER.NAME == "StudentDHO" else 0)


def test_the_whole_table_on_digits(tmp_path, pretended, capsys):
    pretended[0] = score
    out = tmp_path / "out"
    words = [
        "--dataset",
        "digits",
        "--shots",
        "1",
        "4",
        "--jobs",
        "1",
        "--teachers",
        "confused",
        "clean",
        "--output-dir",
        str(out),
    ]
    assert command(["students", *words]) == 0
    shown = capsys.readouterr().out
    document = (out / "students.md").read_text()
    assert document in shown and "## Teacher: confused" in document and "paper" not in document.replace("papers", "")
    records = json.loads((out / "students.json").read_text())
    assert len(records) == 2 * 2 * 3 * 9 and set(records[0]) == {"block", "row", "column", "seed", "accuracy"}
    teacher = [r for r in records if (r["block"], r["row"]) == ("clean", TRAINED)]
    assert [(r["column"], r["seed"], r["accuracy"]) for r in teacher[:2]] == [("1-shot", 1, 81.0), ("4-shot", 1, 81.0)]
    alone = [
        [r["accuracy"] for r in records if (r["block"], r["row"]) == (kind, "CE")] for kind in ("confused", "clean")
    ]
    assert alone[0] == alone[1] and len(alone[0]) == 6
    closing = document[document.index("## By teacher") :].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in closing if line.startswith("| c")]
    assert [line[:3] for line in cells] == [["confused", "82.0", "+2.2 ±0.1*"], ["clean", "82.0", "-2.8 ±0.1*"]]
    assert [line[3:5] for line in cells] == [["-0.8 ±0.1*", "SSKD"], ["-2.8 ±0.1*", "CEKD"]]
    assert [line[5:] for line in cells] == [["12", "0", "2"], ["10", "0", "4"]]
    assert "Of 14 cells (a rival at a number of shots), DHO wins 12, ties 0 and loses 2;" in document
    assert "* DHO v SSKD: 1-shot -0.8 ±0.1* (clearly below), 4-shot -0.8 ±0.1* (clearly below)" in document
    with (out / "students.csv").open() as file:
        lines = list(csv.DictReader(file))
    (line,) = [
        r for r in lines if (r["block"], r["row"], r["column"], r["control"]) == ("clean", DHO, "4-shot", "CEKD")
    ]
    assert float(line["difference"]) == pytest.approx(-2.8) and line["n"] == "3"
    assert (out / "students.tex").read_text().count(r"\begin{tabular}") == 2

    assert command(["students", *words]) == 0
    assert capsys.readouterr().out.count("finished before") == 2 * 3 + 2 * 3 + 2 * 2 * 3 * 7
    assert (out / "students.md").read_text() == document


def test_students_of_a_teacher_that_failed_are_missing(tmp_path, pretended, capsys):
    def broken(cfg):
        if cfg.DATASET.NAME == "DigitsNoisy":
            raise RuntimeError("broken")
        return score(cfg)

    pretended[0] = broken
    words = "--dataset digits --shots 2 --seeds 1 --jobs 1 --teachers noisy clean --rows DHO --rows CEKD"
    assert command(["students", *words.split(), "--output-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert f"noisy, teacher, seed 1: RuntimeError: broken (see {tmp_path}/noisy/teacher/seed1/{LOG})" in shown.err
    assert "noisy, 2-shot, DHO, seed 1: not run, since 'teacher' failed" in shown.err
    lines = [line for line in shown.out.splitlines() if line.startswith("| DHO  ")]
    assert "missing" in lines[0] and "63.3" in lines[1]
    assert "One seed has no standard error" in shown.out and "wins" not in shown.out.partition("## By teacher")[0]


def test_a_cell_is_planned_once_and_entered_where_it_belongs(tmp_path):
    first = Method("first", ("--trainer", "CE"), same_for=("shots", "block"), seeded=False)
    then = Method("then", ("--trainer", "KD", "--teacher", "{after}/x"), ("RESUME", "{after}"), after="first")
    blocks = [Block(name, name, [first, then], [], []) for name in ("a", "b c")]
    planned = plan_blocks(blocks, [1, 2], [5], tmp_path, ("--dataset", "shapes"))
    assert [str(entry.cell) for entry in planned] == [
        *("first, seed 5", "a, 1-shot, then, seed 5", "a, 2-shot, then, seed 5"),
        *("b c, 1-shot, then, seed 5", "b c, 2-shot, then, seed 5"),
    ]
    assert planned[0].places == [("a", "1-shot"), ("a", "2-shot"), ("b c", "1-shot"), ("b c", "2-shot")]
    assert "--shots" not in planned[0].cell.words and planned[0].cell.folder == tmp_path / "first" / "seed5"
    assert planned[4].cell.folder == tmp_path / "b_c" / "shots2" / "then" / "seed5"
    assert planned[4].cell.words[:6] == ("--dataset", "shapes", "--shots", "2", "--trainer", "KD")
    assert planned[4].cell.words[6:8] == ("--teacher", f"{tmp_path}/first/seed5/x")
    assert planned[4].cell.words[-1] == f"{tmp_path}/first/seed5"
    outcomes = [Outcome(planned[0].cell, {"test": 7.0}), Outcome(planned[4].cell, {}, "failed")]
    assert enter(planned, outcomes, [5, 6])["b c"] == [
        Record("first", column, seed, 7.0) for column in ("1-shot", "2-shot") for seed in (5, 6)
    ]


def test_options_that_rows_differ_in_are_refused(tmp_path):
    blocks = [Block("", "", rows(clip_teacher("T")), [], [])]
    with pytest.raises(UsageError, match=r"TRAINER\.DHO\.ALPHA is what the rows"):
        plan_blocks(blocks, [1], [1], tmp_path, ("--dataset", "shapes"), ("TRAINER.DHO.ALPHA", "0.5"))


def test_ties_are_counted_apart(tmp_path):
    values = {DHO: (3.0, 5.0, 4.0), "CE": (1.0, 2.9, 2.1), "KD": (3.0, 4.0, 5.5), "CEKD": (4.0, 6.1, 5.0)}
    records = [Record(row, "1-shot", seed, value) for row, of in values.items() for seed, value in enumerate(of)]
    pairs = [(DHO, rival) for rival in ("CE", "KD", "CEKD", "SSKD")]
    block = Block("", "", [Method(row, ()) for row in values], pairs, pairs)
    text = section(block, records, ["1-shot"])
    assert text[-3].startswith("Of 3 cells (a rival at a number of shots), DHO wins 1, ties 1 and loses 1;")
    assert "SSKD" not in "".join(text) and text[-1].count("clearly below") == 1
    job = Job("students", "", [block], [1], [])
    assert students.by_teacher(job, {"": records}).lines[0][2:5] == ("-1.0 ±0.0*", "-1.0 ±0.0*", "CEKD")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset digitz", "Did you mean 'digits"),
        ("--dataset digits --teachers confusd", "Did you mean 'confused'"),
        ("--teachers shapes-teache", "Did you mean 'shapes-teacher'"),
        ("--teachers shapes-teacher shapes-teacher", "stands twice"),
        ("--shots 0", "--shots 0"),
        ("--shots 1 1", "--shots 1 1"),
        ("--shots", "expected at least one argument"),
        ("--seeds 1 1", "--seeds 1 1"),
        ("--rows LoRA", "--rows LoRA"),
        ("--teachers shapes-teacher OPTIM.LRR 1", "Did you mean 'OPTIM.LR'"),
        ("--shots 1 MODEL.BACKBONE.NAME x", "MODEL.BACKBONE.NAME is what"),
        ("--backbone timm/test_resne", "test_resne"),
    ],
)
def test_mistakes_are_said_before_anything_runs(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "worker", lambda: pytest.fail("too late"))
    monkeypatch.setattr(by_shots, "check_training_sets", lambda cells: pytest.fail("too late"))
    try:
        assert command(["students", *words.split()]) == 2
    except SystemExit as end:
        assert end.code == 2
    assert message in capsys.readouterr().err


def test_names_end_where_options_begin():
    args = students.parse(["--teachers", "RN50", "ViT-B/16", "USE_CUDA", "False", "--seeds", "3", "OPTIM.LR", "1"])
    assert (args.teachers, args.seeds) == (["RN50", "ViT-B/16"], [3])
    assert args.opts == ["USE_CUDA", "False", "OPTIM.LR", "1"] or args.opts == ["OPTIM.LR", "1", "USE_CUDA", "False"]
    assert KINDS["digits"] == ("confused", "noisy", "clean")


def test_a_small_table_for_real(workspace, tmp_path, monkeypatch, capsys):
    """Trainers and files as they are, in this process: six classes, an epoch of three steps."""
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    base = f"--dataset imagenet --root {workspace} --backbone timm/test_resnet --teacher {workspace}/teacher.pt"
    rest = f"--shots 1 2 --seeds 1 --jobs 1 --rows zero-shot --rows DHO-F --output-dir {tmp_path}"
    options = f"{runs.OPTIONS} {runs.PRECISION} OPTIM.MAX_EPOCH 1 INPUT.SIZE (32,32) USE_CUDA False"
    words = f"students {base} {rest} {options}".split()
    assert command(words) == 0
    shown = capsys.readouterr().out
    assert shown.count("] ") == 5 and "finished before" not in shown
    records = json.loads((tmp_path / "students.json").read_text())
    assert {(r["row"], r["column"]) for r in records} == {
        (row, column) for row in (ZERO_SHOT, FEW_SHOT, DHO_F) for column in ("1-shot", "2-shot")
    }
    assert command(words) == 0 and capsys.readouterr().out.count("finished before") == 5
