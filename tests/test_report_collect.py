"""Which runs a report finds, what it says of broken ones, and what it compares with what."""

from __future__ import annotations

import json

import pytest
from report_cells import cell

from dho_plugin.errors import UsageError
from dho_plugin.report.collect import collect
from dho_plugin.report.comparison import named_pairs, of_dataset, told_apart, variants
from dho_plugin.report.tables_left import comparisons
from dho_plugin.tables import summary
from dho_plugin.tables.by_shots import Block, Job, texts
from dho_plugin.tables.cells import Method
from dho_plugin.tables.command import write
from dho_plugin.tables.summary import Paper, Record


def only(source):
    (found,) = comparisons(source)
    return found


def test_runs_are_found_once_wherever_they_lie(tmp_path):
    cell(tmp_path / "grid" / "CoOp" / "seed1", {"test": 60.0}, row="CoOp")
    cell(tmp_path / "grid" / "CoOp" / "seed2", {"test": 61.0}, row="CoOp", seed=2)
    cell(tmp_path / "grid" / "zero" / "seed1", {"test": 50.0}, row="zero-shot", trainer="ZeroshotCLIP", manifest=None)
    cell(tmp_path / "alone", {"test": 70.0}, trainer="CoOpDHO", flags="--dataset shapes --labels-only")
    (tmp_path / "grid" / "CoOp" / "seed1" / "stage_one").mkdir()
    (tmp_path / "grid" / "CoOp" / "seed1" / "stage_one" / "log.txt").write_text("part of a run\n")
    grid, alone = collect([str(tmp_path / "grid"), str(tmp_path / "alone"), str(tmp_path / "grid" / "CoOp" / "seed1")])
    assert [(run.row, run.seed, run.accuracies["test"]) for run in grid.runs] == [
        ("CoOp", 1, 60.0),
        ("CoOp", 2, 61.0),
        ("zero-shot", 1, 50.0),
    ]
    assert [(run.row, run.labels, run.dataset) for run in alone.runs] == [("CoOpDHO (labels)", "16-shot", "Shapes")]
    assert not grid.problems and not alone.problems


def test_broken_and_unfinished_folders_are_named_and_the_others_shown(tmp_path):
    cell(tmp_path / "whole", {"test": 60.0})
    cell(tmp_path / "begun", {}, finished=None, results=None)
    cell(tmp_path / "untested", {}, results={})
    cell(tmp_path / "half", {"test": 60.0}, row="CoOp", manifest=None)
    (tmp_path / "half" / "result.json").write_text('{"row": "CoOp", "se')
    cell(tmp_path / "garbled", {"test": 60.0})
    (tmp_path / "garbled" / "manifest.json").write_text("{")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.yaml").write_text("- a\n")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log.txt").write_text("error: no dataset\n")
    (source,) = collect([str(tmp_path)])
    assert sorted(run.folder.name for run in source.runs) == ["begun", "untested", "whole"]
    said = {problem.name.rpartition("/")[2]: problem.what for problem in source.problems}
    assert set(said) == {"begun", "untested", "half", "garbled", "foreign", "list", "log"}
    assert said["begun"] == "is not over" and "no results" in said["untested"]
    assert "no manifest of a run" in said["garbled"] and "cannot be read" in said["foreign"]
    assert only(source).columns == ["test"]


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="nowhere: expected the output folder"):
        collect([str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match=r"no run in .* leaves config.yaml and manifest.json"):
        collect([str(tmp_path)])


def test_the_alpha_and_beta_of_an_adapter_are_not_those_of_two_heads(tmp_path):
    at = {"alpha": 1.0, "beta": 5.5, "chosen": "fixed"}
    runs = {name: cell(tmp_path / name, {}, trainer=name, interpolation=at) for name in ("TipAdapterF", "CoOpDHO")}
    assert {name: run.two_heads for name, run in runs.items()} == {"TipAdapterF": False, "CoOpDHO": True}


def test_by_test_set_or_by_shots(tmp_path):
    runs = [
        cell(tmp_path / "1", {"test": 60.0, "V2": 50.0}),
        cell(tmp_path / "2", {"test": 62.0, "V2": 52.0}, seed=2),
        cell(tmp_path / "z", {"test": 40.0, "V2": 30.0}, trainer="ZeroshotCLIP", row="zero-shot", manifest=None),
    ]
    sets = of_dataset("Shapes", "Shapes", runs)
    assert (sets.columns, list(sets.rows)) == (["test", "V2"], ["zero-shot", "CoOp"])
    assert summary.accuracies(sets.records, "zero-shot", "V2") == {1: 30.0, 2: 30.0}  # has no seed, counts for all
    runs.append(cell(tmp_path / "3", {"test (oracle)": 55.0, "V2 (oracle)": 45.0}, flags="--dataset shapes --shots 4"))
    shots = of_dataset("Shapes", "Shapes", runs)
    assert shots.columns == ["4-shot", "4-shot (oracle)", "16-shot"]
    assert summary.accuracies(shots.records, "CoOp", "4-shot (oracle)") == {1: 55.0}
    assert summary.accuracies(shots.records, "zero-shot", "4-shot") == {1: 40.0, 2: 40.0}
    assert {name: len(own) for name, own in shots.groups().items()} == {
        "zero-shot": 1,
        "CoOp, 16-shot": 2,
        "CoOp, 4-shot": 1,
    }
    assert [one.title for one in told_apart([sets, shots, sets])] == ["Shapes", "Shapes (2)", "Shapes (3)"]


def test_one_label_with_two_settings_makes_two_rows(tmp_path):
    runs = [cell(tmp_path / f"{seed}", {"test": 60.0}, seed=seed) for seed in (1, 2)]
    assert list(variants(runs)) == ["CoOp"]
    other = cell(tmp_path / "other", {"test": 10.0}, flags="--dataset shapes OPTIM.LR 0.5")
    rows = variants([*runs, other])
    assert {row: len(own) for row, own in rows.items()} == {"CoOp [OPTIM.LR 0.005]": 2, "CoOp [OPTIM.LR 0.5]": 1}


def test_rows_are_compared_with_their_controls(tmp_path):
    names = {
        "student, zero-shot": "ZeroshotCLIP",
        "CoOp": "CoOp",
        "CoOp + CasPL": "CoOp",
        "CoOp + DHO (labels)": "CoOpDHO",
        "StudentDHO": "StudentDHO",
        "CEKD": "CEKD",
        "VPTDHO": "VPTDHO",
        "VPT": "VPT",
    }
    flags = {"StudentDHO": "--dataset shapes", "CEKD": "--dataset shapes"}
    rows = {
        row: [cell(tmp_path / str(i), {}, trainer=trainer, row=row, flags=flags.get(row, "--dataset shapes"))]
        for i, (row, trainer) in enumerate(names.items())
    }
    assert set(named_pairs(rows)) == {
        ("CoOp", "student, zero-shot"),
        ("CoOp + CasPL", "CoOp"),
        ("CoOp + DHO (labels)", "CoOp"),
        ("CoOp + DHO (labels)", "CoOp + CasPL"),
        ("StudentDHO", "CEKD"),
        ("CEKD", "student, zero-shot"),
        ("VPTDHO", "VPT"),
        ("VPT", "student, zero-shot"),
    }


# Tables that a command has left


def leave(folder, records, paper=summary.NO_PAPER):
    """What by_shots.publish leaves."""
    methods = [Method("DHO", ()), Method("KD", ()), Method("CE", ())]
    block = Block("", "", methods, [("DHO", "KD"), ("DHO", "CE")], (), paper)
    write(folder, "students", texts(Job("students", "", [block], [1, 4], ()), {"": records}, "text"))


@pytest.mark.parametrize("dataset", ["shapes", "imagenet"])
def test_a_table_is_shown_as_its_command_left_it(tmp_path, dataset):
    for row, trainer in (("DHO", "StudentDHO"), ("KD", "KD")):
        for shots in (1, 4):
            for seed in (1, 2):
                flags = f"--dataset {dataset} --shots {shots}"
                value = {"test": 50.0 + shots + seed}
                place = tmp_path / f"shots{shots}" / row / f"seed{seed}"
                cell(place, value, trainer=trainer, row=row, seed=seed, flags=flags)
    records = [
        Record(row, f"{n}-shot", seed, 50.0 + n + seed) for row in ("DHO", "KD") for n in (1, 4) for seed in (1, 2)
    ]
    leave(tmp_path, records, Paper(("1-shot", "4-shot"), {"KD": (51.0, None)}))
    found = only(*collect([str(tmp_path)]))
    assert (list(found.rows), found.columns) == (["DHO", "KD", "CE"], ["1-shot", "4-shot"])  # CE was planned only
    assert (found.pairs, found.records) == ([("DHO", "KD"), ("DHO", "CE")], records)
    assert [len(runs) for runs in found.rows.values()] == [4, 4, 0]
    assert found.paper.value("KD", 0) == (51.0 if dataset == "imagenet" else None)  # theirs is ImageNet


def test_a_table_older_than_a_run_is_passed_over(tmp_path):
    for seed in (1, 2):
        cell(tmp_path / "DHO" / f"seed{seed}", {"test": 50.0}, trainer="StudentDHO", row="DHO", seed=seed)
    leave(tmp_path, [Record("DHO", "16-shot", 1, 50.0)])
    found = only(*collect([str(tmp_path)]))
    assert len(found.records) == 2 and found.title.startswith("Shapes")


def test_blocks_keep_to_their_folders(tmp_path):
    for name in ("noisy", "clean"):
        cell(tmp_path / name / "DHO" / "seed1", {"test": len(name)}, trainer="StudentDHO", row="DHO")
    cell(tmp_path / "CE" / "seed1", {"test": 1.0}, trainer="CE", row="CE")  # the same in both blocks
    blocks = [Block(name, "", [Method("DHO", ()), Method("CE", ())], [], ()) for name in ("noisy", "clean")]
    records = {
        name: [Record("DHO", "16-shot", 1, len(name)), Record("CE", "16-shot", 1, 1.0)] for name in ("noisy", "clean")
    }
    write(tmp_path, "students", texts(Job("students", "", blocks, [16], ()), records, "text"))
    found = comparisons(*collect([str(tmp_path)]))
    assert [one.title for one in found] == ["students: noisy", "students: clean"]
    assert [[run.folder.parent.parent.name for run in one.rows["DHO"]] for one in found] == [["noisy"], ["clean"]]
    assert [len(one.rows["CE"]) for one in found] == [1, 1]


def test_files_that_are_no_tables_are_passed_over(tmp_path):
    cell(tmp_path / "run", {"test": 50.0})
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "half.csv").write_text("row,column,mean,sd,n,paper,control,difference,se\nCoOp,test,1,,1,,,,\n")
    (tmp_path / "half.json").write_text(json.dumps([]))
    assert only(*collect([str(tmp_path)])).records == [Record("CoOp", "test", 1, 50.0)]
