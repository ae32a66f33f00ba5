"""The benchmark compares before it times, and what it times is what it says; times themselves are not tested."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from dho_plugin import benchmark
from dho_plugin.benchmark import text as benchmark_text
from dho_plugin.benchmark.row import Row, difference
from dho_plugin.benchmark.text import memory, rows, whole_prompts
from dho_plugin.errors import UsageError
from dho_plugin.vlm import imagenet_classnames, load_vlm

NAMES = list(imagenet_classnames())


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """Nine layers of text, as deep as PromptSRC's prompts."""
    text = {**tiny.TEXT, "layers": 9}
    model = tiny.open_clip.CLIP(embed_dim=32, vision_cfg=dict(tiny.VIT), text_cfg=text, quick_gelu=True)
    path = tmp_path_factory.mktemp("w") / "a.safetensors"
    return load_vlm(str(tiny.save_self_describing(path, model, text=text)))


def test_both_ways_give_the_same_features_and_gradients(vlm):
    found = list(rows(vlm, NAMES[:4]))
    assert len(found) == 9
    for row in found:
        assert difference(row) < 1e-5, row.name


def test_the_peers_way_is_clips_own(vlm):
    learner = benchmark_text.PromptLearner(
        vlm, benchmark_text.ClassList(("a", "b"), ("tench", "tank suit")), ctx_init="a photo of a"
    )
    with torch.no_grad():
        expected = vlm.model.encode_text(vlm.tokenize(["a photo of a tench.", "a photo of a tank suit."]))
    torch.testing.assert_close(whole_prompts(vlm, learner), expected, rtol=1e-4, atol=1e-5)


def test_memory_is_that_of_all_classes(vlm):
    few, many = (memory(vlm, NAMES[:n], few=2) for n in (10, 40))
    assert many.peers / few.peers == pytest.approx(4, rel=0.01)
    assert many.ours < many.peers / 10
    assert 3 < many.ours / few.ours < 4.5  # the shared tokens do not grow


def test_the_command(vlm, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "random_vlm", lambda name: vlm)
    out = tmp_path / "b.json"
    line = ["--parts", "text", "--classes", "3", "--repeats", "2", "--only", "generic", "--json", str(out)]
    assert benchmark.main(line) == 0
    said = capsys.readouterr()
    assert said.out.count("| text forward and backward, generic context") == 2
    assert "C = 1000: peers" in said.out
    measured = json.loads(out.read_text())
    assert [len(row["ratios"]) for row in measured["rows"]] == [2, 2]
    assert measured["rows"][0]["wanted"] == 13 and measured["memory"]["classes"] == 1000


def test_results_that_differ_are_an_error(monkeypatch, vlm, capsys):
    one = torch.ones(3)
    wrong = Row("wrong", lambda: [one], lambda: [one * 1.001], 2.0)
    monkeypatch.setattr(benchmark, "random_vlm", lambda name: vlm)
    monkeypatch.setattr(benchmark, "text_rows", lambda vlm, names: iter([wrong]))
    monkeypatch.setattr(benchmark, "input_rows", lambda folder: iter([]))
    assert benchmark.main(["--quick"]) == 1
    assert "wrong: the results differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--classes 0", "expected 1"),
        ("--classes 2000", "at most 1000"),
        ("--json /no/x.json", "no folder /no"),
        ("--picture /no/x.svg", "no folder /no"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(line, message):
    with pytest.raises(UsageError, match=message):
        benchmark.main(line.split())
