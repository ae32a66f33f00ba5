"""The benchmark's whole steps: ours and the peers' way come to the same gradients; where time goes; the picture."""

from __future__ import annotations

import copy
from xml.etree import ElementTree

import pytest
import tiny
import torch

from dho_plugin import vlm
from dho_plugin.benchmark.picture import COLOURS, draw
from dho_plugin.benchmark.row import difference
from dho_plugin.benchmark.steps import Bench, Scale, rows, where_time_goes
from dho_plugin.benchmark.text import WholeTowers
from dho_plugin.stored_teacher import StoredTeacher

SCALE = Scale("ViT-B/32", "ViT-B/16", classes=3, batch=2, probe=(5, 6))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Nine layers, as deep as PromptSRC's prompts; the teacher is another model than the student."""
    text, vision = {**tiny.TEXT, "layers": 9}, {**tiny.VIT, "layers": 9}
    models = {}
    for seed, name in enumerate((SCALE.student, SCALE.teacher)):
        torch.manual_seed(seed)
        model = tiny.open_clip.CLIP(embed_dim=32, vision_cfg=dict(vision), text_cfg=text, quick_gelu=True)
        path = tiny.save_self_describing(tmp_path / f"{seed}.safetensors", model, vision, text)
        models[name] = vlm.load_vlm(str(path))
    monkeypatch.setattr(vlm, "random_vlm", lambda architecture, *, name="": copy.deepcopy(models[architecture]))
    return Bench(tmp_path / "bench", SCALE, cuda=False)


def test_both_ways_give_the_same_losses_gradients_and_answers(bench):
    found = {row.name: (row.wanted, difference(row)) for row in rows(bench, lambda name: True)}
    assert [wanted for wanted, _ in found.values()] == [45, 5.8, 6.4, None, 1000, 1 / 1.3, 2.5]
    compared = [apart for wanted, apart in found.values() if wanted != 1000]
    assert len(compared) == 6 and max(compared) < 1e-5


def test_only_what_is_wanted_is_built(bench, monkeypatch):
    built = []
    monkeypatch.setattr(bench, "pair", lambda name, *rest: built.append(name) or pytest.skip)
    assert list(rows(bench, lambda name: False)) == [] == built


def test_the_peers_have_live_models_and_whole_towers(bench):
    peers, ours = bench.pair("CoOpDHO", 3, 2)
    assert isinstance(peers.ce_head.vlm, WholeTowers) and isinstance(peers.backbone.vlm, WholeTowers)
    assert peers.stored is None and not isinstance(peers.teacher, StoredTeacher)
    assert isinstance(ours.teacher, StoredTeacher) and ours.stored is not None
    seen = []
    forward = peers.vlm._causal_text().transformer.resblocks[-1].forward
    peers.vlm._causal_text().transformer.resblocks[-1].forward = lambda x, **k: (
        seen.append(x.shape[1]) or forward(x, **k)
    )
    peers.forward_backward(peers.train_loader_x.batches[0])
    assert seen == [77]
    before = [p.clone() for p in peers.ce_head.prompt_learner.parameters()]
    peers.forward_backward(peers.train_loader_x.batches[1])  # each repetition is the same step
    assert all(torch.equal(a, b) for a, b in zip(before, peers.ce_head.prompt_learner.parameters(), strict=True))


def test_where_time_goes_and_its_picture(bench):
    peers, ours = where_time_goes(bench)
    assert list(peers) == list(ours) and len(peers) == len(COLOURS) and min(peers.values()) > 0
    assert ours["student's image tower"] == 0 < peers["student's image tower"]
    picture = ElementTree.fromstring(
        draw("a <title>", {"a": 3.0, **dict.fromkeys("bcde", 0.25)}, dict.fromkeys("abcde", 0.02))
    )
    shapes = [(float(r.get("x", 0)), float(r.get("width"))) for r in picture.iter("{http://www.w3.org/2000/svg}rect")]
    whole = sum(width for _, width in shapes[1:6])
    assert shapes[1][1] / whole == pytest.approx(0.75, abs=1e-3)
    assert sum(width for _, width in shapes[6:11]) / whole == pytest.approx(0.1 / 4, abs=1e-3)
    assert sum(width for _, width in shapes[11:16]) == pytest.approx(whole, abs=0.1)
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <title>" in texts and "here, 40 x enlarged" in texts and "a: 75.0 % before, 20.0 % now" in texts
