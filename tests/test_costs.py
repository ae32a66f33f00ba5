"""Sizes against hand computation, ratios from given times, and the command on small students; no time is asserted."""

from __future__ import annotations

import json

import open_clip
import pytest
import tiny
import torch
from torch import nn

from dho_plugin import costs
from dho_plugin.__main__ import main as command
from dho_plugin.costs_tables import PAPER, Report, head_table, merging_table, merging_verdicts, size_table
from dho_plugin.errors import UsageError
from dho_plugin.heads import build_head
from dho_plugin.measuring import (
    WARM_UP,
    Size,
    Student,
    Timing,
    build_student,
    count_macs,
    count_parameters,
    macs_of_merging,
    merged,
    ratio,
    side_by_side,
    sizes,
    smallest_r,
)
from dho_plugin.student import DualHeadStudent
from dho_plugin.towers import ImageEncoder
from dho_plugin.vlm import architectures, load_vlm, random_vlm

CPU = torch.device("cpu")
LAYERS, WIDTH, PATCHES, PATCH_SIZE, EMBEDDING, CLASSES, HEADS = 3, 64, 16, 8, 32, 10, 2
VIT = {**tiny.VIT, "layers": LAYERS, "head_width": WIDTH // HEADS}


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Student:
    path = tiny.save_self_describing(tmp_path_factory.mktemp("w") / "a.safetensors", tiny.tiny_clip(VIT), VIT)
    vlm = load_vlm(str(path))
    heads = [build_head(kind, EMBEDDING, CLASSES) for kind in ("linear", "cosine")]
    return Student("tiny", DualHeadStudent(ImageEncoder(vlm), *heads), vlm.model.visual, 32, vlm)


def vit_macs(r: int) -> int:
    """Multiply-adds of the image tower, layer by layer, by hand."""
    total, free = PATCHES * 3 * PATCH_SIZE**2 * WIDTH, PATCHES
    for _ in range(LAYERS):
        tokens = 1 + free
        total += 4 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH  # queries, keys, values, output; scores, sum of values
        if r:
            total += (free // 2) * (free - free // 2) * (WIDTH // HEADS)  # every pair of the two sets
        free -= min(r, free // 2)
        total += 8 * (1 + free) * WIDTH**2
    return total + WIDTH * EMBEDDING


def test_a_linear_layer_and_a_convolution_by_hand():
    x = torch.zeros(3, 20)
    assert count_macs(lambda: nn.Linear(20, 7)(x)) == 3 * 20 * 7
    assert count_macs(lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2)(x.new_zeros(1, 4, 5, 5))) == 5 * 5 * 6 * 2 * 9


def test_fused_attention_is_counted_and_stays_switched_on():
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval().requires_grad_(False)
    x = torch.zeros(2, 5, 16)
    assert count_macs(lambda: attention(x, x, x, need_weights=False)) == 2 * (4 * 5 * 16**2 + 2 * 5**2 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


def test_sizes_of_a_small_vit_by_hand(student):
    one, two = sizes(student)
    head = EMBEDDING * CLASSES
    assert one.macs == vit_macs(0) + head
    assert two.macs == vit_macs(0) + 2 * head
    assert two.parameters - one.parameters == head  # the cosine head has no bias
    assert one.parameters == count_parameters(student.tower) + head + CLASSES
    assert one.parameters < count_parameters(student.model), "the text tower does not count"


@pytest.mark.parametrize("r", [1, 3, 100])
def test_sizes_of_a_merging_vit_by_hand(student, r):
    assert macs_of_merging(student, r) == vit_macs(r) + 2 * EMBEDDING * CLASSES


def test_the_smallest_r_is_the_first_that_saves_enough(student):
    r = smallest_r(student, 0.25)
    whole = macs_of_merging(student, 0)
    assert macs_of_merging(student, r) <= 0.75 * whole < macs_of_merging(student, r - 1)
    with pytest.raises(UsageError, match="99 %"):
        smallest_r(student, 0.99)


def test_a_merged_student_has_the_same_heads_and_other_features(student):
    other, images = merged(student, 4), student.images(2)
    assert other.ce_head is student.model.ce_head and other.kd_head is student.model.kd_head
    assert torch.equal(merged(student, 0)(images).kd, student.model(images).kd)
    assert not torch.allclose(other(images).ce, student.model(images).ce, atol=1e-4)


def test_measurements_take_turns():
    seen: list[str] = []
    seconds = side_by_side({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, repeats=3, device=CPU)
    assert seen == ["a", "b"] * (WARM_UP + 3)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians():
    found = ratio([1.0, 40.0, 9.0], [2.0, 40.0, 6.0])
    assert found == pytest.approx((1.0, 0.75, 1.25))


def given_report() -> Report:
    """ViT-B/16 whose second head takes 0.2 % at batch 32 and 1 % at batch 1; r = 13 saves just enough."""
    heads = [
        Timing("ViT-B/16", 1, {"backbone": [1.0, 1.0], "one head": [1.0, 1.1], "two heads": [1.2, 1.1]}),
        Timing("ViT-B/16", 32, {"backbone": [4.0, 8.0], "one head": [4.0, 8.0], "two heads": [4.0, 8.0]}),
    ]
    heads[0].seconds["second head"], heads[1].seconds["second head"] = [0.01, 0.01], [0.008, 0.016]
    merging = Timing("ViT-B/16", 32, {"0": [4.0, 6.0], "8": [3.6, 5.4], "13": [3.0, 4.0], "16": [2.0, 3.0]})
    macs = {0: 1000, 8: 800, 13: 750, 16: 600}
    return Report(
        {"ViT-B/16": (Size(86_570_000, 17_000), Size(87_340_000, 17_001))}, heads, {"ViT-B/16": macs}, [merging]
    )


def test_shares_and_their_verdict_from_given_times():
    one, many = head_table(given_report()).lines
    assert one == ("ViT-B/16, batch 1", "1.00 % [1.00 %, 1.00 %]", "NO", "10.00 % [5.00 %, 15.00 %]", "0.02 %")
    assert many == ("ViT-B/16, batch 32", "0.20 % [0.20 %, 0.20 %]", "yes", "0.00 % [0.00 %, 0.00 %]", "0.02 %")


def test_merging_from_given_times():
    report = given_report()
    lines = merging_table(report).lines
    assert [line[2] for line in lines] == ["+0.0 %", "-20.0 %", "-25.0 %", "-40.0 %"]
    assert lines[2] == ("ViT-B/16, batch 32, r = 13", "0.00", "-25.0 %", "9.14", "1.42 [1.38, 1.46]")
    (verdict,) = merging_verdicts(report)
    assert "r = 13 is the smallest" in verdict and "yes (1.42" in verdict
    report.merging[0].seconds["13"][:] = [4.0, 5.0]
    assert "NO (1.10" in merging_verdicts(report)[0]


def test_sizes_stand_beside_the_papers():
    table = size_table(given_report())
    assert table.header[-2:] == ("paper: params, M", "paper: MACs, G")
    one, two = table.lines
    assert one[:2] == ("ViT-B/16", "86.57") and one[-2:] == ("86.57", "16.87")
    assert two[:2] == ("+ DHO", "87.34") and two[4:6] == (f"{1 / 1.15:.1f}", f"{32 / 6:.1f}")
    on_gpu = given_report()
    on_gpu.heads[:] = [timing._replace(peak=3 * 2**20) for timing in on_gpu.heads]
    assert size_table(on_gpu).header[6:8] == ("peak MiB, batch 1", "peak MiB, batch 32")
    assert size_table(on_gpu).lines[1][6:8] == ("3", "3")


def test_classifiers_have_the_papers_parameters():
    """Table 7: the KD head of a classifier is linear with a bias."""
    for name in ("resnet18", "mobilenet_v2"):
        one, two = sizes(build_student(name, 1000))
        for size, printed in ((one, PAPER[name].one_head), (two, PAPER[name].two_heads)):
            assert size.parameters / 1e6 == pytest.approx(printed[0], abs=0.0051)
            assert size.macs / 1e9 == pytest.approx(printed[1], abs=0.04)  # the paper counts batch norm too


def test_the_command_on_small_students(tmp_path, capsys):
    file = tmp_path / "costs.json"
    words = "costs --students mobilenet_v3_small ViT-S-32-alt --classes 7 --batch 1 2 --repeats 2 --device cpu --tome 2"
    assert command([*words.split(), "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"threads {torch.get_num_threads()}" in said and "load average" in said
    assert "| mobilenet_v3_small, batch 2 " in said and "| ViT-S-32-alt, batch 1, r = 2 " in said
    assert "ViT-S-32-alt, batch 2: r = 3 is the smallest that saves 25 % of FLOPs" in said
    stored = json.loads(file.read_text())
    assert [(timing["student"], timing["batch"]) for timing in stored["heads"]] == [
        (name, batch) for name in ("mobilenet_v3_small", "ViT-S-32-alt") for batch in (1, 2)
    ]
    assert all(len(values) == 2 for timing in stored["heads"] for values in timing["seconds"].values())
    assert set(stored["merging"][0]["seconds"]) == {"0", "2", "3"}
    assert stored["environment"]["precision"] == "fp32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--students resnet81", "Did you mean"),
        ("--students resnet18 --tome", "only the ViT of a CLIP"),
        ("--batch 0", "--batch 0: expected 1 or more"),
        ("--repeats 1", "--repeats 1: expected 2 or more"),
        ("--tome -1", "--tome -1: expected 0 or more"),
        ("--json missing/costs.json", "there is no folder"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(words, message, capsys, monkeypatch):
    monkeypatch.setattr(costs, "measure", None)
    assert command(["costs", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_random_vlm_has_the_true_size_and_fetches_nothing():
    vlm = random_vlm("ViT-S-32-alt")
    config = open_clip.get_model_config("ViT-S-32-alt")
    assert vlm.width == config["embed_dim"] and vlm.image.size == config["vision_cfg"]["image_size"]
    true = open_clip.create_model("ViT-S-32-alt", load_weights=False)
    assert count_parameters(vlm) == count_parameters(true)
    assert {"ViT-B/16", "RN50", "ViT-L/14@336px", "ViT-H-14-378-quickgelu"} <= set(architectures())
    for name, message in (("ViT-B/61", "Did you mean 'ViT-B/16'"), ("ViT-B-16-SigLIP", "without a download")):
        with pytest.raises(UsageError, match=message):
            random_vlm(name)
