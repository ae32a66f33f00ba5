from __future__ import annotations

import argparse
import csv
import json
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dho_plugin import cli, vlm
from dho_plugin.__main__ import main as command
from dho_plugin.errors import UsageError
from dho_plugin.host import TRAINER_REGISTRY
from dho_plugin.tables import by_sets, sweep
from dho_plugin.tables.by_sets import Job
from dho_plugin.tables.cells import LOG, Method, plan
from dho_plugin.tables.summary import Paper, Record
from dho_plugin.tables.table13 import chosen, labels, parse, vit_layers
from dho_plugin.tables.table13_rows import (
    PAPER,
    STAGE_ONE,
    STUDENT,
    TAKEN,
    TEACHER,
    comparisons,
    footnotes,
    is_dho,
    paper_rows,
    rows,
)


def line(method) -> str:
    return " ".join((*method.flags, *method.options))


def on_workspace(workspace, output, *more: str) -> list[str]:
    """The command on six classes, with short trainings."""
    base = f"--dataset imagenet --root {workspace} --backbone {workspace}/student.safetensors --shots 2 --seeds 1"
    steps = "OPTIM.MAX_EPOCH 1 TRAINER.DHO.STEPS_PER_EPOCH 2 DATALOADER.TRAIN_X.BATCH_SIZE 4 DATALOADER.NUM_WORKERS 0"
    precision = "USE_CUDA False " + " ".join(
        f"TRAINER.{name}.PREC fp32" for name in ("ZEROSHOTCLIP", "LINEARPROBE", "COOP", "CASPL")
    )
    words = f"{base} --teacher {workspace}/teacher.pt --output-dir {output}"
    return [*words.split(), *more, *steps.split(), *precision.split()]


@pytest.fixture
def pretended(monkeypatch):
    """Trainings that do nothing, in this process; those of the trainers in the returned set fail."""
    broken: set[str] = set()

    def train(cfg, args):
        if cfg.TRAINER.NAME in broken:
            raise RuntimeError("broken")
        value = 60.0 + len(cfg.TRAINER.NAME) + cfg.SEED
        return dict.fromkeys(("test", "V2", "Sketch", "R", "A"), value)

    monkeypatch.setattr(cli, "run", train)
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    return broken


def test_the_papers_numbers():
    """Spot values of Table 13, and rows that it compares by name."""
    assert PAPER[STUDENT] == (66.7, 60.8, 46.2, 74.0, 47.8)
    assert PAPER["LP + DHO (+ unlabelled)"] == (74.6, 66.4, 49.2, 76.1, 49.8)
    assert PAPER["VPT-3"][0] == 73.6 and PAPER["VPT-3 + DHO (labels)"][4] == 49.1
    assert "VPT-9" not in PAPER and PAPER["VPT-9 + DHO (+ unlabelled)"] == (75.6, 67.4, 50.8, 77.3, 46.5)
    assert PAPER["CoOp + CasPL"] == (71.9, 64.3, 48.3, 76.0, None)
    assert PAPER["PromptSRC + DHO (labels)"] == (73.0, 65.3, 49.5, 77.8, 51.3)
    assert len(PAPER) == 17 and all(len(numbers) == 5 for numbers in PAPER.values())


def test_the_rows_of_a_twelve_layer_student():
    methods = {method.row: method for method in rows("T", 12, ("--shots", "1"), ("--shots", "16"))}
    assert list(methods) == [
        *(STUDENT, TEACHER, "LP", "LP + DHO (labels)", "LP + DHO (+ unlabelled)"),
        *("VPT-3", "VPT-3 + DHO (labels)", "VPT-3 + DHO (+ unlabelled)"),
        *("VPT-9", "VPT-9 + DHO (labels)", "VPT-9 + DHO (+ unlabelled)"),
        *(STAGE_ONE, "CoOp", "CoOp + CasPL", "CoOp + DHO (labels)", "CoOp + DHO (+ unlabelled)"),
        *("PromptSRC", "PromptSRC + CasPL", "PromptSRC + DHO (labels)", "PromptSRC + DHO (+ unlabelled)"),
    ]
    assert set(PAPER) <= set(methods)
    assert line(methods[TEACHER]) == "--trainer ZeroshotCLIP --backbone T"
    assert line(methods["LP"]) == "--trainer LinearProbe --shots 1"
    assert line(methods["LP + DHO (labels)"]) == "--trainer LinearProbeDHO --shots 1 --labels-only"
    assert line(methods["VPT-9"]) == "--trainer VPT --shots 1 TRAINER.VPT.PROMPT_DEPTH 9"
    assert line(methods["VPT-3 + DHO (+ unlabelled)"]) == "--trainer VPTDHO --shots 1 TRAINER.VPT.PROMPT_DEPTH 3"
    assert line(methods["CoOp + CasPL"]) == "--trainer CoOpCasPL --shots 16 TRAINER.CASPL.BOOSTING {after}"
    assert [row for row, method in methods.items() if method.after == STAGE_ONE] == [
        "CoOp + CasPL",
        "PromptSRC + CasPL",
    ]
    assert [row for row, method in methods.items() if not method.seeded] == [STUDENT, TEACHER]
    trainers = {method.flags[1] for method in methods.values()}
    assert trainers <= set(TRAINER_REGISTRY.registered_names())


def test_vpt_goes_as_deep_as_the_student():
    def labels_at(layers):
        return [method.row for method in rows("T", layers, (), ()) if "VPT" in method.row and "DHO" not in method.row]

    assert [labels_at(layers) for layers in (12, 9, 4, 3, 2, 0)] == [
        *(["VPT-3", "VPT-9"], ["VPT-3", "VPT-9"], ["VPT-3", "VPT-4"], ["VPT-3"], ["VPT-2"], [])
    ]
    deepest = next(method for method in rows("T", 4, (), ()) if method.row == "VPT-4")
    assert deepest.options == ("TRAINER.VPT.PROMPT_DEPTH", "4")
    assert footnotes([deepest], "S", 12) == []
    assert footnotes([deepest], "S", 4) == ["VPT-4 stands for VPT-9: this student has 4 layers."]
    assert footnotes([], "S", 3) == ["VPT-9 is left out: this student has 3 layers, so that it is VPT-3 again."]
    assert "on top" in footnotes(list(rows("T", 12, (), ())), "S", 12)[0]
    assert paper_rows(4)["VPT-4 + DHO (labels)"] == PAPER["VPT-9 + DHO (labels)"]
    assert paper_rows(2)["VPT-2 + DHO (labels)"] == PAPER["VPT-3 + DHO (labels)"]
    assert paper_rows(12) == PAPER


def test_a_student_without_a_vit_has_the_other_rows(workspace):
    assert vit_layers(f"{workspace}/student.safetensors") == 2
    assert vit_layers(f"{workspace}/teacher.pt") == 0
    left = {method.row.partition(" +")[0] for method in rows("T", 0, (), ())}
    assert left == {STUDENT, TEACHER, "LP", "CoOp"}
    assert not any("CasPL" in method.row for method in rows("T", 0, (), ()))
    assert "PromptSRC" in footnotes([], "RN50", 0)[0] and "RN50" in footnotes([], "RN50", 0)[0]


def test_dho_rows_are_compared_with_caspl_too():
    pairs = comparisons(list(rows("T", 12, (), ())))
    assert [pair for pair in pairs if pair[0].startswith("CoOp + DHO")] == [
        ("CoOp + DHO (labels)", "CoOp"),
        ("CoOp + DHO (labels)", "CoOp + CasPL"),
        ("CoOp + DHO (+ unlabelled)", "CoOp"),
        ("CoOp + DHO (+ unlabelled)", "CoOp + CasPL"),
    ]
    assert ("LP + DHO (labels)", "LP") in pairs and ("CoOp + CasPL", "CoOp") in pairs and (STAGE_ONE, STUDENT) in pairs
    assert ("VPT-9 + DHO (labels)", "VPT-9") in pairs and len(pairs) == 6 + 2 + 10 + 4
    only = [method for method in rows("T", 12, (), ()) if method.row != "CoOp"]
    assert ("CoOp + DHO (labels)", "CoOp") not in comparisons(only)


def test_labels_are_the_papers_on_imagenet_alone():
    cfg = argparse.Namespace(DATASET=argparse.Namespace(NUM_SHOTS=8))
    probe, prompt, said = labels(argparse.Namespace(dataset="imagenet", shots=None), cfg)
    assert (probe, prompt) == (("--labels", "simclr-1"), ("--shots", "16")) and "1 %" in said
    assert labels(argparse.Namespace(dataset="imagenet", shots=4), cfg)[:2] == (("--shots", "4"), ("--shots", "4"))
    probe, prompt, said = labels(argparse.Namespace(dataset="shapes", shots=None), cfg)
    assert probe == prompt == () and said.startswith("Every row has 8 labelled images a class")


def test_rows_are_chosen_by_a_part_of_their_label():
    methods = list(rows("T", 12, (), ()))
    assert [method.row for method in chosen(methods, ["lp + dho", "teacher"])] == [
        *(TEACHER, "LP + DHO (labels)", "LP + DHO (+ unlabelled)")
    ]
    assert [method.row for method in chosen(methods, ["CoOp + CasPL"])] == [STAGE_ONE, "CoOp + CasPL"]
    assert chosen(methods, []) == methods
    with pytest.raises(UsageError, match="--rows LoRA"):
        chosen(methods, ["LoRA"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset shapez", "Did you mean 'shapes"),
        ("--dataset imagenet", "no --root"),
        ("--seeds 1 1", "--seeds 1 1"),
        ("--jobs 0", "--jobs 0"),
        ("--json nowhere/r.json", "--json nowhere/r.json"),
        ("--table nowhere/t.md", "--table nowhere/t.md"),
        ("--teacher shapes-teache", "Did you mean 'shapes-teacher'"),
        ("OPTIM.LRR 1", "Did you mean 'OPTIM.LR'"),
        ("OPTIM.LR", "KEY VALUE pairs"),
        ("--seeds 1 OPTIM.LR 1 SEED 4", "SEED is what the rows"),
        ("--rows CoOp TRAINER.DHO.TEACHER.NAME shapes-student", "TRAINER.DHO.TEACHER.NAME is what"),
    ],
)
def test_mistakes_are_said_before_anything_runs(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "worker", lambda: pytest.fail("too late"))
    monkeypatch.setattr(by_sets, "check_data", lambda cells: pytest.fail("too late"))
    assert command(["table13", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_missing_images_are_said_before_the_first_run(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "worker", lambda: pytest.fail("too late"))
    (tmp_path / "imagenet").symlink_to(workspace / "imagenet")  # and none of its shifts
    words = on_workspace(workspace, tmp_path / "out")
    words[words.index("--root") + 1] = str(tmp_path)
    assert command(["table13", *words]) == 2
    assert f"missing folder {tmp_path}/imagenetv2" in capsys.readouterr().err


def test_the_labels_of_every_row_are_looked_for(workspace, tmp_path):
    flags = ("--dataset", "imagenet", "--root", str(workspace), "--trainer", "LinearProbe")
    methods = [Method("listed", ("--labels", "nowhere.txt")), Method("drawn", ("--shots", "2"))]
    cells = plan(methods, [1], tmp_path, flags)
    by_sets.check_data(cells[1:])
    with pytest.raises(UsageError, match=r"no list 'nowhere\.txt'"):
        by_sets.check_data(cells)


def test_what_rows_and_flags_set_is_not_for_options():
    for method in rows("T", 12, (), ()):
        assert set(method.options[::2]) <= set(TAKEN)
    with pytest.raises(UsageError, match=r"MODEL\.BACKBONE\.NAME"):
        parse(["MODEL.BACKBONE.NAME", "RN50"])


def test_options_may_stand_right_behind_the_seeds():
    args = parse(["--seeds", "4", "5", "OPTIM.LR", "1", "--jobs", "2", "OPTIM.MAX_EPOCH", "1"])
    assert (args.seeds, args.jobs, args.opts) == ([4, 5], 2, ["OPTIM.LR", "1", "OPTIM.MAX_EPOCH", "1"])
    assert parse([]).seeds == [1, 2, 3] and parse([]).output_dir == "output/table13/shapes"


def test_a_dry_run_prints_commands_that_parse_and_leaves_nothing(workspace, tmp_path, capsys):
    words = on_workspace(workspace, tmp_path / "out", "--dry-run", "--rows", "VPT", "--rows", "CasPL")
    assert command(["table13", *words]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [note[:25] for note in shown[:3]] == [
        *("# VPT-2 stands for VPT-3:", "# VPT-9 is left out: this", "# CasPL rows start from s")
    ]
    commands = [shlex.split(line) for line in shown[3:]]
    assert [shown[:2] for shown in commands] == [["python", "train.py"]] * 6
    cfgs = [cli.build_config(cli.parser().parse_args(shown[2:])) for shown in commands]
    names = ["VPT", "VPTDHO", "VPTDHO", "CasPL", "CoOpCasPL", "PromptSRCCasPL"]
    assert [cfg.TRAINER.NAME for cfg in cfgs] == names
    assert {cfg.MODEL.BACKBONE.NAME for cfg in cfgs} == {f"{workspace}/student.safetensors"}
    assert cfgs[4].TRAINER.CASPL.BOOSTING == cfgs[5].TRAINER.CASPL.BOOSTING == cfgs[3].OUTPUT_DIR
    assert [cfg.TRAINER.DHO.UNLABELED for cfg in cfgs[1:3]] == [False, True]
    assert cfgs[0].TRAINER.VPT.PROMPT_DEPTH == 2 and cfgs[0].OPTIM.MAX_EPOCH == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_needs_no_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vlm, "_pretrained", lambda *_, **__: pytest.fail("looked for weights"))
    words = f"table13 --dataset imagenet --root nowhere --seeds 1 --output-dir {tmp_path} --dry-run"
    assert command(words.split()) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == 20 and all(line.startswith("python train.py ") for line in lines)


def test_a_failing_row_is_missing_and_the_others_are_there(workspace, tmp_path, pretended, capsys):
    pretended.add("CoOpDHO")
    table, values = tmp_path / "t.md", tmp_path / "t.json"
    files = ["--table", str(table), "--json", str(values)]
    words = on_workspace(workspace, tmp_path / "out", "--rows", "CoOp", "--rows", "LP", "--jobs", "1", *files)
    assert command(["table13", *words]) == 1
    shown = capsys.readouterr()
    assert "CoOp + DHO (labels), seed 1: RuntimeError: broken (see " in shown.err
    lines = {row.split("|")[1].strip(): row for row in table.read_text().splitlines() if row.startswith("|")}
    assert lines["CoOp + DHO (labels)"].count("missing") == 5 and "72.8" in lines["CoOp + DHO (labels)"]
    assert "65.0" in lines["CoOp"] and "71.5" in lines["CoOp"]
    assert table.read_text() in shown.out
    assert values.read_text() == (tmp_path / "out" / "table13.json").read_text()


def job_of(methods, paper) -> Job:
    """As the command lays it out, with nothing run."""
    pairs = comparisons(methods)
    return Job("", "Title", methods, [], ("test",), paper, pairs, [pair for pair in pairs if is_dho(pair[0])])


def test_the_document_says_where_dho_did_not_win():
    methods = [method for method in rows("T", 12, (), ()) if method.row.startswith(("CoOp", STAGE_ONE))]
    values = {"CoOp": 70.0, "CoOp + CasPL": 72.0, "CoOp + DHO (labels)": 71.0, "CoOp + DHO (+ unlabelled)": 73.0}
    records = [
        Record(row, "test", seed, value + seed + (0.1 * seed if "DHO" in row else 0))
        for row, value in values.items()
        for seed in (1, 2, 3)
    ]
    paper = Paper(("Val",), PAPER)
    text = job_of(methods, paper).document(records, "command")
    assert text.startswith("# Title\n\n    command\n\nMade by nothing.\n\n| top-1, %")
    closing = text[text.index("DHO rows that are not above") :].splitlines()
    assert closing[2:] == ["* CoOp + DHO (labels) v CoOp + CasPL: test -0.8 ±0.1* (clearly below)"]
    assert "over 3 seeds noise alone earns it in 18 % of cases" in text
    assert "| +1.2 ±0.1* (+1.3) |" in text  # CoOp + DHO (labels) minus CoOp, and the paper's 72.8 - 71.5
    won = job_of([method for method in methods if "CasPL" not in method.row], paper)
    assert won.document(records, "").endswith(
        "Every DHO row is above all that it is compared with by more than two standard errors."
    )
    single = job_of(methods, paper).document(records[::3], "")
    assert "One seed has no standard error" in single and "* CoOp + DHO (labels) v CoOp: test +1.1" in single


def test_a_small_table_for_real(workspace, tmp_path, capsys):
    """Trainers, processes and files as they are: six classes, one epoch of two steps."""
    out = tmp_path / "out"
    words = on_workspace(workspace, out, "--rows", "student", "--rows", "LP", "--rows", "CoOp", "--jobs", "2")
    assert command(["table13", *words]) == 0
    first = capsys.readouterr().out
    document = (out / "table13.md").read_text()
    assert document in first and f"python -m dho_plugin table13 {shlex.join(words)}" in document
    records = [Record(**record) for record in json.loads((out / "table13.json").read_text())]
    names = {STUDENT, "LP", "LP + DHO (labels)", "LP + DHO (+ unlabelled)", STAGE_ONE}
    names |= {"CoOp", "CoOp + CasPL", "CoOp + DHO (labels)", "CoOp + DHO (+ unlabelled)"}
    assert {record.row for record in records} == names and len(records) == 5 * len(names)
    with (out / "table13.csv").open() as file:
        cells = {(cell["row"], cell["column"]): cell for cell in csv.DictReader(file)}
    for record in records:
        assert float(cells[record.row, record.column]["mean"]) == pytest.approx(record.accuracy, abs=1e-3)
    assert (cells["CoOp + DHO (labels)", "V2"]["paper"], cells["CoOp", "A"]["control"]) == ("65.5", STUDENT)
    latex = (out / "table13.tex").read_text().splitlines()
    assert len([shown for shown in latex if shown.endswith(r"\\")]) == 1 + len(names)

    logs = {path: path.read_text() for path in out.glob(f"*/seed1/{LOG}")}
    assert len(logs) == len(names)
    assert command(["table13", *words]) == 0
    assert capsys.readouterr().out.count("finished before") == len(names)
    assert (out / "table13.md").read_text() == document and f"torch {torch.__version__}, CPU" in document
    assert {path: path.read_text() for path in out.glob(f"*/seed1/{LOG}")} == logs
