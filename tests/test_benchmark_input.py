"""The benchmark's rows on images: both ways show the same views, and the peers' way is theirs; times are not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision import transforms as T

from dho_plugin import benchmark
from dho_plugin.benchmark import input as benchmark_input
from dho_plugin.benchmark.input import Files, authors, cut, normalised, ours, read, replayed, rows, two_decodes
from dho_plugin.benchmark.row import Row, difference
from dho_plugin.views import View

HOW = benchmark_input.HOW


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    return Files(tmp_path_factory.mktemp("files"), benchmark_input.SIZE, 3)


def test_both_ways_show_the_same_views(tmp_path):
    found = {row.name: (row, difference(row)) for row in rows(tmp_path, count=2)}
    assert len(found) == 6
    for name, (row, apart) in found.items():
        assert apart <= row.tolerance, name
        assert ("two decodes" in name and "pil" in name) == (apart < 1e-5), name  # CoOp's very pixels


def test_replayed_views_are_compared_to_the_pixel(tmp_path, monkeypatch):
    assert replayed(tmp_path, count=3, passes=2) == (6, 6)
    exact = benchmark_input.render
    monkeypatch.setattr(benchmark_input, "render", lambda i, view, *rest: exact(i, view._replace(flip=True), *rest))
    same, all_ = replayed(tmp_path, count=3, passes=2)
    assert 0 < same < all_ == 6


def test_files_are_written_when_a_row_is_run(tmp_path):
    assert len(list(rows(tmp_path))) == 6 and not list(tmp_path.iterdir())


def test_images_are_as_large_as_is_said(files):
    size = sum(Path(path).stat().st_size for path in files.paths) / len(files.paths)
    assert 70_000 < size < 90_000
    assert read(files.paths[0]).size == (500, 375)


def test_the_peers_transforms_are_torchvisions(files):
    path, (left, top, width, height, _) = files.paths[0], files.views[0][1]
    steps = [T.Lambda(lambda i: T.functional.crop(i, top, left, height, width)), T.Resize((224, 224), HOW)]
    whole = T.Compose([*steps, T.ToTensor(), T.Normalize(benchmark_input.MEAN, benchmark_input.STD)])
    view = View(left, top, width, height, False)
    assert torch.equal(normalised(cut(read(path), view, 224)), whole(read(path)))
    mirrored = normalised(cut(read(path), view._replace(flip=True), 224))
    assert torch.equal(mirrored, whole(read(path)).flip(-1))


def test_what_is_timed(files, monkeypatch):
    decoded, cuts = [], []
    plain, whole = benchmark_input.read, benchmark_input.cut
    monkeypatch.setattr(benchmark_input, "read", lambda path: decoded.append(path) or plain(path))
    monkeypatch.setattr(benchmark_input, "cut", lambda i, v, size: cuts.append(size) or whole(i, v, size))
    assert [len(part) for part in two_decodes(files, (224, 336))] == [3, 3]
    assert len(decoded) == 6 and sorted(cuts) == [224] * 3 + [336] * 3
    decoded.clear(), cuts.clear()
    assert [part.shape[-1] for part in authors(files)] == [224]
    assert len(decoded) == 3 and cuts == [336] * 3
    assert [part.shape[-1] for part in ours(files, None, "pil")] == [224]
    assert [part.shape[-1] for part in ours(files, 336, "tensor")] == [224, 336]
    assert len(decoded) == 3  # ours has a reader of its own


def test_a_row_has_its_own_tolerance(monkeypatch, tmp_path, capsys):
    one = torch.full((3,), 100, dtype=torch.uint8)
    near = Row("near", lambda: [one / 100], lambda: [one + 1], None, 0.05, lambda x: x / 100)
    assert difference(near) == pytest.approx(0.01)
    monkeypatch.setattr(benchmark, "replayed", lambda folder: (1, 1))
    monkeypatch.setattr(benchmark, "input_rows", lambda folder: iter([near]))
    out = tmp_path / "b.json"
    assert benchmark.main(["--quick", "--parts", "input", "--json", str(out)]) == 0
    assert [row["row"] for row in json.loads(out.read_text())["rows"]] == ["near"]
    monkeypatch.setattr(benchmark, "input_rows", lambda folder: iter([near._replace(tolerance=0.005)]))
    assert benchmark.main(["--quick", "--parts", "input"]) == 1
    assert "near: the results differ by more than 0.005" in capsys.readouterr().err
