"""The alpha-beta control computes what the search in Python does, at every point of its grid and to the last image."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dho_plugin import report
from dho_plugin.heads import DualHeadLogits
from dho_plugin.interpolation import ALPHA_GRID, BETA_GRID, interpolate
from dho_plugin.report.slider import packed, slider

SCRIPT = Path(report.__file__).with_name("page.js")


def draw(images: int, classes: int, ce: float, kd: float, step: float = 0.0) -> tuple[DualHeadLogits, torch.Tensor]:
    """Logits that know something of the labels; `ce` and `kd` are their scales, `step` rounds them so that many tie."""
    generator = torch.Generator().manual_seed(images + classes)
    labels = torch.randint(classes, (images,), generator=generator)
    heads = []
    for scale in (ce, kd):
        logits = torch.randn(images, classes, generator=generator)
        logits[torch.arange(images), labels] += 1
        logits = scale * logits
        heads.append(((logits / step).round() * step if step else logits).double())
    return DualHeadLogits(*heads), labels


CASES = {
    "plain": draw(200, 7, 1, 1),
    "sharp KD head": draw(200, 7, 3, 30),
    "saturated: both heads sure, of different classes": draw(200, 5, 60, 400),
    "tied": draw(200, 6, 1, 1, step=1),
    "saturated and tied": draw(200, 6, 50, 50, step=50),
    "tied to the second digit of float32": draw(200, 6, 1e-6, 1e-6, step=1e-6),
    "many classes": draw(100, 60, 5, 20),
    "two classes, more than a block of images": draw(2100, 2, 1, 3),
    "one image": draw(1, 3, 1, 1),
}


def counted(logits: DualHeadLogits, labels: torch.Tensor) -> list[list[int]]:
    """Right answers at each point, by Eq. 11 over all classes."""
    return [
        [int(interpolate(logits, alpha=a, beta=b).argmax(dim=-1).eq(labels).sum()) for b in BETA_GRID]
        for a in ALPHA_GRID
    ]


@pytest.fixture(scope="module")
def wanted() -> dict[str, list[list[int]]]:
    return {name: counted(*case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_hits_are_those_of_all_classes(name, wanted):
    assert slider(*CASES[name]).hits.tolist() == wanted[name]


def test_saturated_images_need_float64_and_few_others():
    needs = {name: [len(contest.sizes) for contest in slider(*case).contests] for name, case in CASES.items()}
    assert needs["saturated and tied"][1] > 0 and needs["saturated: both heads sure, of different classes"][1] > 0
    assert needs["plain"][0] > 0 and needs["plain"][1] == needs["many classes"][1] == 0


def test_what_no_point_decides_is_not_stored():
    sure = torch.eye(3, dtype=torch.float64).repeat(4, 1) * 9
    labels = torch.arange(3).repeat(4)
    data = slider(DualHeadLogits(sure, sure), torch.cat([labels[:11], torch.tensor([0])]))  # the last one is wrong
    assert (data.images, data.always, [len(contest.sizes) for contest in data.contests]) == (12, 11, [0, 0])


def in_node(code: str, given: object, tmp_path: Path) -> object:
    """What a function of the page's script makes of JSON."""
    file = tmp_path / "given.json"
    file.write_text(json.dumps(given))
    code = f"""
        const [script, file] = process.argv.slice(1);
        const {{ unpack, grid, percent }} = require(script);
        const given = JSON.parse(require("fs").readFileSync(file));
        console.log(JSON.stringify({code}));
    """
    done = subprocess.run(["node", "-e", code, SCRIPT, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")


@needs_node
def test_the_page_counts_the_same(wanted, tmp_path):
    cases = [packed(slider(*case)) for case in CASES.values()]
    code = "given.cases.map((set) => grid(unpack(set), given.alphas, given.betas))"
    found = in_node(code, {"alphas": ALPHA_GRID, "betas": BETA_GRID, "cases": cases}, tmp_path)
    assert found == list(wanted.values())


@needs_node
def test_the_page_rounds_the_same(tmp_path):
    pairs = [(n, images) for images in (7, 320, 1600, 20_000) for n in range(images + 1)]
    found = in_node("given.map(([right, images]) => percent(right, images))", pairs, tmp_path)
    assert found == [f"{100.0 * (n / images):.2f}" for n, images in pairs]
