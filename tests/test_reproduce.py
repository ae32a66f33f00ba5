from __future__ import annotations

import functools
import importlib.util
import shlex
from pathlib import Path

import pytest

from dho_plugin import __main__ as commands
from dho_plugin import cli, estimate, reproduce, reproduce_costs, vlm
from dho_plugin.__main__ import main as command
from dho_plugin.errors import UsageError
from dho_plugin.reproduce import Step, named, parse, steps_of
from dho_plugin.reproduce_costs import Cost, costs_of
from dho_plugin.reproduce_registry import ENTRIES
from dho_plugin.saved import check_same_settings, settings

ROOT = Path(__file__).resolve().parent.parent
# Every number that the paper gives to a table or a figure.
TABLES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
FIGURES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)
# Those of which the issue asks for the runs themselves, at both scales.
RUNS = [f"table{number}" for number in (1, 2, 3, 4, 5, 7, 9, 12, 13, 14, 15)]
RUNS += [f"figure{number}" for number in (4, 5, 8, 10, 13, 15)]
SCALES = [(key, scale) for key in ENTRIES for scale in ("paper", "demo")]


def module(name: str) -> str:
    """The module of a command."""
    return f"dho_plugin.{commands.COMMANDS[name].module}"


trainings = functools.cache(Step.trainings)


def steps(key: str, scale: str, output: str = "out") -> list[Step]:
    return steps_of(key, parse([key, "--scale", scale, "--dry-run", "--output-dir", output]))


def check(step: Step) -> None:
    """Let the command's own parser read the words; SystemExit or UsageError where it does not take them."""
    if step.command == "train.py":
        cli.build_config(cli.parser().parse_args(step.words))
        return
    found = importlib.import_module(module(step.command))
    if step.command == "data":
        from dho_plugin.data import doctor

        assert step.words[0] == "doctor"
        doctor.parser().parse_args(step.words[1:])
    elif hasattr(found, "parse"):
        found.parse(list(step.words))
    else:
        found.parser().parse_args(list(step.words))


def test_every_table_and_figure_of_the_paper_has_a_command():
    assert list(ENTRIES) == [f"table{number}" for number in TABLES] + [f"figure{number}" for number in FIGURES]
    for key, entry in ENTRIES.items():
        assert entry.paper and entry.demo and entry.shows, key


@pytest.mark.parametrize(("key", "scale"), SCALES)
def test_each_step_is_read_by_its_command(key, scale, tmp_path):
    tmp_path.joinpath(scale).mkdir()  # where `reproduce` has made it
    for step in steps(key, scale, str(tmp_path)):
        check(step)


def unique_steps(scale: str) -> list[Step]:
    return list(dict.fromkeys(step for key in ENTRIES for step in steps(key, scale)))


@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_entries_that_name_the_same_folder_want_the_same_run(scale, monkeypatch):
    """Each run is trained once, whichever entry comes first; none of it needs data or weights."""
    monkeypatch.setattr(vlm, "_pretrained", lambda *_, **__: pytest.fail("looked for weights"))
    found: dict[str, set[tuple[str, ...]]] = {}
    for step in unique_steps(scale):
        for words in trainings(step):
            if "--explain" not in words:
                found.setdefault(words[words.index("--output-dir") + 1], set()).add(tuple(words))
    assert len(found) > 100 and all(folder.startswith(f"out/{scale}/") for folder in found)
    for folder, lines in found.items():
        wanted = [settings(cli.build_config(cli.parser().parse_args(words))) for words in lines if len(lines) > 1]
        for own in wanted:
            check_same_settings(own, wanted[0], Path(folder))


def test_what_is_looked_at_is_what_was_trained():
    """The runs that features, heads and gallery are asked about are runs of a step before."""
    asking = ("features", "heads", "gallery")
    for key, scale in SCALES:
        trained: set[str] = set()
        for step in steps(key, scale) if any(step.command in asking for step in steps(key, scale)) else ():
            trained |= {cli.parser().parse_args(words).output_dir for words in trainings(step)}
            if step.command in asking:
                runs = step.words[: next(i for i, word in enumerate(step.words) if word.startswith("--"))]
                assert runs and trained.issuperset(runs), (key, scale)


@pytest.mark.parametrize(("key", "scale"), SCALES)
def test_a_dry_run_says_cost_and_commands(key, scale, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "costs_of", lambda lines, gpu: [Cost("a kind", 3, 2.0)])
    monkeypatch.setattr(Step, "trainings", lambda self: [])
    monkeypatch.setattr(Step, "run", lambda self: pytest.fail("ran"))
    words = ["reproduce", *reproduce.title(key).split(), "--scale", scale, "--dry-run", "--output-dir", str(tmp_path)]
    assert command(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert ENTRIES[key].shows in shown[0]
    at = shown.index(f"mkdir -p {tmp_path}/{scale}")
    assert shown[at + 1 :] == [str(step) for step in steps(key, scale, str(tmp_path))]
    assert any(line.startswith("| together") for line in shown[:at]) == (scale == "paper")
    assert not (tmp_path / scale).exists()
    programs = [shlex.split(line)[:2] for line in shown[at + 1 :]]
    assert all(program in (["python", "train.py"], ["python", "-m"]) for program in programs)


def test_flags_that_nobody_gave_are_left_out():
    (given,) = steps_of("table13", parse(shlex.split("table13 --scale demo --root R --jobs 3 --output-dir O")))
    flags = "--root R --jobs 3 --table O/demo/table13.md --output-dir O/demo/table13"
    assert str(given) == f"python -m dho_plugin table13 --dataset shapes --seeds 1 2 3 {flags}"
    (without,) = steps_of("table13", parse(["table13", "--scale", "demo"]))
    assert "--root" not in without.words and "--jobs" not in without.words
    one, two = steps_of("table1", parse(["table1", "--dry-run"]))
    assert one.words[one.words.index("--root") + 1] == "DATA"
    assert [step.words[step.words.index("--table") + 1] for step in (one, two)] == [
        *("output/reproduce/paper/table1.md", "output/reproduce/paper/table1_2.md")
    ]


@pytest.mark.parametrize(
    ("what", "key"), [("Table 13", "table13"), ("fig. 4", "figure4"), ("FIGURE04", "figure4"), ("tab 1", "table1")]
)
def test_names_of_tables_and_figures(what, key):
    assert named(what) == key and reproduce.title("figure4") == "Figure 4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("table16", "which has Tables 1 to 15 and Figures 1 to 19"),
        ("tbale13", "Did you mean 'table13'"),
        ("table13", "no --root: give the folder"),
        ("table13 --root x --gpu h2000", "invalid choice"),
    ],
)
def test_mistakes_are_said_before_anything_runs(words, message, monkeypatch, capsys):
    monkeypatch.setattr(Step, "run", lambda self: pytest.fail("ran"))
    try:
        assert command(["reproduce", *words.split()]) == 2
    except SystemExit as end:
        assert end.code == 2
    assert message in capsys.readouterr().err


def test_steps_run_one_after_the_other_and_their_files_are_named(tmp_path, monkeypatch, capsys):
    ran = []

    def run(step: Step) -> int:
        ran.append(step.command)
        folder = Path(step.words[step.words.index("--output-dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{step.command}.md").write_text("")
        return 0

    monkeypatch.setattr(Step, "run", run)
    assert command(["reproduce", "figure7", "--scale", "demo", "--output-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert ran == ["students", "features"] and "What it takes was not measured" in shown
    assert shown.splitlines()[-2:] == [f"{tmp_path}/demo/runs/students.md", f"{tmp_path}/demo/tsne/features.md"]


def test_a_failing_step_ends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Step, "run", lambda self: 1 if self.command == "students" else pytest.fail("went on"))
    assert command(["reproduce", "figure7", "--scale", "demo", "--output-dir", str(tmp_path)]) == 1
    assert "step 1 of 2 ended with 1" in capsys.readouterr().out


def test_days_of_training_are_not_started_by_mistake(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(reproduce, "costs_of", lambda lines, gpu: [Cost("a kind", 3, 20.0)])
    monkeypatch.setattr(Step, "trainings", lambda self: [])
    monkeypatch.setattr(Step, "run", lambda self: ran.append(self) or 0)
    words = ["reproduce", "table13", "--root", "x", "--output-dir", str(tmp_path)]
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert command(words) == 2 and "about 60 GPU hours" in capsys.readouterr().err and not ran
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda said: "n")
    assert command(words) == 0 and not ran
    assert command([*words, "--yes"]) == 0 and len(ran) == 1


# Costs


def test_runs_of_a_kind_are_counted_once_each(monkeypatch):
    asked = []
    monkeypatch.setattr(reproduce_costs, "hours_of", lambda args, gpu: asked.append((args, gpu)) or 2.5)
    base = "--dataset imagenet --root DATA --seed 1"
    lines = [
        f"{base} --trainer TipAdapterF --backbone RN50 --shots 4 --output-dir tip",
        f"{base} --trainer StudentDHO --teacher tip --shots 16 --output-dir a TRAINER.DHO.ALPHA 0.2",
        f"{base} --trainer StudentDHO --teacher RN50 --shots 4 --output-dir b TRAINER.DHO.ALPHA 0.4",
        f"{base} --trainer StudentDHO --teacher RN50 --shots 4 --output-dir b TRAINER.DHO.ALPHA 0.4",
        f"{base} --trainer StudentDHO --eval-only --model-dir b --output-dir c",
        f"{base} --trainer ZeroshotCLIP --output-dir d",
        f"{base} --trainer CoOpCasPL --shots 4 --output-dir e TRAINER.CASPL.BOOSTING nowhere",
    ]
    found = costs_of([line.split() for line in lines], "t4")
    assert [(cost.kind, cost.runs) for cost in found] == [
        *(("TipAdapterF on imagenet, RN50", 1), ("StudentDHO on imagenet, RN50", 2), ("CoOpCasPL on imagenet", 1))
    ]
    assert {gpu for _, gpu in asked} == {"t4"} and asked[1][0].shots == 4 and asked[2][0].opts == []
    assert reproduce_costs.total(found) == 10.0
    assert reproduce_costs.costs_table(found).lines[-1] == ("together", "4", "", "10")


def test_hours_are_those_of_estimate():
    words = "--trainer StudentDHO --dataset eurosat --root nowhere --shots 16 --seed 1 --output-dir x"
    (cost,) = costs_of([words.split()], "t4")
    args = estimate.parse(["--gpu", "t4", *words.split()])
    gpu = estimate.estimate(estimate.configuration(args), args)["gpu"]
    assert cost.hours == max(gpu["hours"]["live"], gpu["loader"]["live"]["hours"]) > 0


# The list


def test_the_page_has_the_list(capsys):
    assert command(["reproduce", "list", "--markdown"]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown in (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert shown.count("\n") == 1 + len(TABLES) + len(FIGURES)


def test_without_an_argument_it_lists(capsys):
    assert command(["reproduce"]) == 0
    shown = capsys.readouterr().out
    assert all(key in shown and ENTRIES[key].shows in shown for key in ENTRIES) and "|" not in shown


def test_stand_ins_take_minutes():
    assert all(entry.minutes <= 15 for entry in ENTRIES.values())
    assert ENTRIES["table13"].minutes and ENTRIES["figure4"].minutes
    recorded: dict[tuple[str, ...], float] = {}
    for key, entry in ENTRIES.items():
        assert recorded.setdefault(entry.demo, entry.minutes) == entry.minutes, key


def test_a_step_that_cannot_be_planned_is_named():
    with pytest.raises(UsageError, match=r"python -m dho_plugin students --dataset digitz: error: .*digits"):
        Step("students", ("--dataset", "digitz")).trainings()
