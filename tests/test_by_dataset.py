from __future__ import annotations

import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from statistics import mean

import pytest

from dho_plugin import cli
from dho_plugin.__main__ import main as command
from dho_plugin.datasets import CATALOGUE, TEN
from dho_plugin.tables import by_dataset, by_shots, sweep
from dho_plugin.tables.ablations import NL_KD, TABLE_14_TEN
from dho_plugin.tables.by_dataset import Series, all_series
from dho_plugin.tables.by_shots import Block, Job
from dho_plugin.tables.cells import Method
from dho_plugin.tables.multiples import multiples
from dho_plugin.tables.summary import Paper, Record


@pytest.fixture
def pretended(monkeypatch):
    """Trainings in this process that end at an accuracy made of dataset, trainer, shots and seed."""
    monkeypatch.setattr(cli, "run", lambda cfg, args: {"test": score(cfg)})
    monkeypatch.setattr(sweep, "worker", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(by_dataset, "check_training_sets", lambda configurations: list(configurations))


def score(cfg) -> float:
    base = {"Shapes": 40.0, "Digits": 70.0}.get(cfg.DATASET.NAME, 90.0)
    return base + len(cfg.TRAINER.NAME) + cfg.DATASET.NUM_SHOTS + 0.1 * cfg.SEED * len(cfg.TRAINER.NAME)


def configurations(words: str, capsys):
    """The configuration and the parsed command line of each run of a dry run."""
    assert command([*words.split(), "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    parsed = [cli.parser().parse_args(shlex.split(line)[2:]) for line in lines]
    return [(cli.build_config(args), args) for args in parsed]


def test_the_ten_are_those_of_the_catalogue():
    names = [cli.build_config(cli.parser().parse_args(f"--trainer CE --dataset {n} --root x".split())) for n in TEN]
    assert [cfg.DATASET.NAME for cfg in names] == [described.name for described in CATALOGUE]


def test_the_ten_have_the_papers_settings(tmp_path, capsys):
    """Table 6: other students, 200 epochs, alpha and beta searched on validation images."""
    words = f"students --datasets ten imagenet --root x --shots 16 --seeds 1 --output-dir {tmp_path}/out"
    found = [cfg for cfg, _ in configurations(words, capsys)]
    assert len(found) == 11 * 11 and len({cfg.OUTPUT_DIR for cfg in found}) == len(found)
    for cfg in (cfg for cfg in found if cfg.TRAINER.NAME == "StudentDHO"):
        settings = (cfg.TRAINER.DHO.CHOOSE, cfg.MODEL.BACKBONE.NAME, cfg.OPTIM.MAX_EPOCH)
        few = cfg.DATASET.NAME == "ImageNet"
        assert settings == (("fixed", "resnet18", 20) if few else ("val", "resnet18:imagenet", 200))
    assert f"{tmp_path}/out/dtd/shots16/CEKD/seed1" in {cfg.OUTPUT_DIR for cfg in found}


def test_ablations_of_the_ten_are_tuned_on_validation(tmp_path, capsys):
    words = f"ablations --datasets dtd,imagenet --root x --which nonlinear --seeds 1 --output-dir {tmp_path}/out"
    found = configurations(words, capsys)
    searched = [args for cfg, args in found if cfg.TRAINER.DHO.CHOOSE == "val"]
    assert len(searched) == 4 and all(args.eval_only and args.dataset == "dtd" for args in searched)
    assert TABLE_14_TEN[NL_KD] == (58.3, 62.1, 67.8, 72.4, 76.5) and TABLE_14_TEN["DHO"][4] == 76.5


def series(**accuracies: dict[tuple[str, str, int], float]) -> Series:
    block = Block("", "", [Method("a", ()), Method("b", ())], [("a", "b")], [], mean_paper=Paper(("x",), {"a": (1.0,)}))
    return Series("", block, {name: [Record(*key, v) for key, v in of.items()] for name, of in accuracies.items()})


def test_the_mean_is_over_what_all_datasets_have():
    one = {("a", "1-shot", 1): 10.0, ("a", "1-shot", 2): 20.0, ("b", "1-shot", 1): 7.0}
    two = {("a", "1-shot", 1): 30.0, ("b", "1-shot", 1): 8.0, ("b", "1-shot", 2): 8.0}
    assert series(one=one, two=two).mean() == [Record("a", "1-shot", 1, 20.0), Record("b", "1-shot", 1, 7.5)]
    assert series(one=one, two=two, imagenet=two).averaged == ["one", "two"]
    assert series(imagenet=two).averaged == ["imagenet"]
    assert series(one=one).mean() == [Record(*key, value) for key, value in one.items()]


def test_the_papers_mean_stands_beside_the_mean_over_the_ten():
    one = {("a", "1-shot", 1): 10.0}
    assert series(**dict.fromkeys(TEN, one), imagenet=one).results(["1-shot"]).lines == (("a", "10.0", "1.0"),)
    assert series(**dict.fromkeys(TEN[1:], one)).results(["1-shot"]).lines == (("a", "10.0"),)


def job(*names: str) -> Job:
    return Job("students", "", [Block(name, name, [Method("a", ())], [], []) for name in names], [1], [])


def test_blocks_of_one_name_have_a_mean_each():
    found = {(dataset, block): [Record("a", "1-shot", 1, 1.0)] for dataset in "pq" for block in ("x", "y", "")}
    each = all_series({"p": job("x", "y"), "q": job("x", "y")}, found)
    assert [(s.name, list(s.records)) for s in each] == [("x", ["p", "q"]), ("y", ["p", "q"])]
    (together,) = all_series({"p": job(""), "q": job("x", "y")}, found)
    assert (together.name, list(together.records)) == ("", ["p", "q, x", "q, y"])


def test_a_figure_has_the_means_and_their_deviations():
    of = {"one": [Record("a", "1-shot", seed, 10.0 * seed) for seed in (1, 2)] + [Record("b", "4-shot", 1, 5.0)]}
    figure = multiples(
        {**of, "two": [], **{str(n): of["one"] for n in range(4)}}, ["b", "missing", "a"], ["1-shot", "4-shot"]
    )
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title("left") for axis in shown] == ["one", "two", "0", "1", "2", "3"] and len(figure.axes) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "a"]
    b, a = shown[0].containers
    assert a[0].get_ydata()[0] == 15.0 and b[0].get_ydata()[1] == 5.0 and b[0].get_ydata()[0] != b[0].get_ydata()[0]
    (bar,) = a[2]
    assert bar.get_segments()[0][:, 1] == pytest.approx([15 - 50**0.5, 15 + 50**0.5])
    assert [tick.get_text() for tick in shown[0].get_xticklabels()] == ["1", "4"]


def test_the_whole_of_it(tmp_path, pretended, capsys):
    base = f"--datasets shapes digits --shots 1 4 --seeds 1 2 --jobs 1 --output-dir {tmp_path}"
    words = f"{base} --rows CE --rows DHO --table {tmp_path}/t.md --json {tmp_path}/t.json"
    assert command(["students", *words.split()]) == 0
    shown = capsys.readouterr().out
    document = (tmp_path / "by_dataset.md").read_text()
    assert document in shown and (tmp_path / "shapes" / "students.md").read_text() in shown
    panels = ["shapes", "digits, confused", "digits, noisy", "digits, clean"]
    assert f"The mean over {', '.join(panels)};" in document
    assert (tmp_path / "t.md").read_text() == document
    records = json.loads((tmp_path / "by_dataset.json").read_text())
    assert json.loads((tmp_path / "t.json").read_text()) == records
    own = [r["accuracy"] for r in records if (r["row"], r["column"]) == ("CEKD", "4-shot")]
    assert len(own) == 4 * 2 and f"| {mean(own):.1f} ±0.3 |" in document
    for picture in ("zero_shot_teacher", "few_shot_teacher"):
        assert f"]({f'by_dataset_{picture}'}.svg)" in document
        svg = (tmp_path / f"by_dataset_{picture}.svg").read_text()
        assert all(panel in svg for panel in ["mean", *panels])
    assert command(["students", *words.split()]) == 0
    again = capsys.readouterr().out
    assert again.count("finished before") == again.count("] ") > 20
    assert (tmp_path / "by_dataset.md").read_text() == document


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("students --datasets shapes digitz", "Did you mean 'digits"),
        ("students --datasets digits --teachers confusd", "Did you mean 'confused'"),
        ("ablations --datasets shapes digits --which start", "digits has no CLIP student"),
    ],
)
def test_mistakes_are_said_before_anything_runs(words, message, monkeypatch, capsys):
    for module in (by_dataset, by_shots):
        monkeypatch.setattr(module, "check_training_sets", lambda configurations: pytest.fail("too late"))
    assert command(words.split()) == 2
    assert message in capsys.readouterr().err
