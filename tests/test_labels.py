from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny

from dho_plugin import labels
from dho_plugin.balanced import balanced_draw, class_quotas
from dho_plugin.errors import UsageError
from dho_plugin.labels import PublicList, drawn, list_file, listed


def lines(count: int = 1) -> str:
    return "\n".join(f"{wnid}_{number}.JPEG" for wnid in tiny.WNIDS for number in range(count)) + "\n"


@pytest.fixture
def public(monkeypatch, tmp_path) -> Path:
    """The public 1 % list, as it would be on the web: here a file."""
    file = tmp_path / "web" / "1percent.txt"
    file.parent.mkdir()
    file.write_text(lines())
    source = PublicList(file.as_uri(), hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setitem(labels.LISTS, "simclr-1", source)
    return file


def test_a_public_list_is_fetched_once_and_its_images_alone_are_labelled(workspace, tmp_path, public, capsys):
    options = "--labels simclr-1 --shots -1"
    (workspace / "imagenet/imagenet_subsets/1percent.txt").unlink(missing_ok=True)
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", options)
    assert sorted(Path(item.impath).name for item in trainer.dm.dataset.train_x) == sorted(lines().split())
    assert len(trainer.unlabeled_paths()) == 18  # 4 images of each of 6 classes, one of each labelled
    public.unlink()
    runs.make(workspace, "LinearProbeDHO", tmp_path / "b", options)
    assert capsys.readouterr().out.count("Fetching file://") == 1


def test_where_nothing_can_be_written_beside_the_images_a_list_is_kept_elsewhere(monkeypatch, tmp_path, public):
    images = tmp_path / "data" / "imagenet"
    images.mkdir(parents=True)
    monkeypatch.setattr(labels.torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != images)
    file = list_file("simclr-1", images)
    assert file == tmp_path / "cache/imagenet_subsets/1percent.txt" and not list(images.iterdir())
    public.unlink()
    assert list_file("simclr-1", images) == file


def test_another_file_of_that_name_is_refused(monkeypatch, tmp_path, public):
    monkeypatch.setitem(labels.LISTS, "simclr-1", labels.LISTS["simclr-1"]._replace(sha256="0" * 64))
    with pytest.raises(UsageError, match=r"cannot fetch .*invalid hash.* put that file at .*imagenet_subsets/1perc"):
        list_file("simclr-1", tmp_path)
    assert not (tmp_path / "imagenet_subsets/1percent.txt").exists()


def test_a_list_of_ones_own(workspace, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("".join(f"train/{wnid}/{wnid}_2.JPEG\n\n" for wnid in tiny.WNIDS))
    trainer = runs.make(workspace, "CoOp", tmp_path / "a", f"--labels {file} --shots -1")
    assert {Path(item.impath).name[-6] for item in trainer.dm.dataset.train_x} == {"2"}
    assert (
        "imagenet/CoOp/vit_b16_ep50_mine"
        in runs.cli.build_config(
            runs.cli.parser().parse_args(
                f"--trainer CoOp --dataset imagenet --root {workspace} --labels {file}".split()
            )
        ).OUTPUT_DIR
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stranger.JPEG\n", r"line 1: no training image has the name 'stranger.JPEG'"),
        (lines().replace(f"{tiny.WNIDS[2]}_0.JPEG\n", ""), "names no image of 1 classes, first 'crane'"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(workspace, tmp_path, text, message):
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        runs.make(workspace, "CoOp", tmp_path / "a", f"--labels {tmp_path}/mine.txt --shots -1")


def test_a_list_that_changed_is_another_run_and_wins_over_the_datasets_shots(workspace, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(lines())
    runs.run(workspace, "CoOp", tmp_path / "a", f"--labels {file} --shots -1")
    file.write_text(lines(2))
    with pytest.raises(UsageError, match=r"DATASET.LABELS: 'mine.txt sha256"):
        runs.run(workspace, "CoOp", tmp_path / "a", f"--labels {file} --shots -1")
    args = runs.cli.parser().parse_args(f"--trainer CoOp --dataset shapes --labels {file}".split())
    assert runs.cli.build_config(args).DATASET.NUM_SHOTS == -1


def test_a_public_list_on_disk_is_checked_too(tmp_path, public):
    folder = tmp_path / "imagenet_subsets"
    folder.mkdir()
    (folder / "1percent.txt").write_text("something else\n")
    with pytest.raises(UsageError, match="delete it"):
        list_file("simclr-1", tmp_path)


def test_a_name_that_fits_two_images_is_refused(workspace, tmp_path):
    items = runs.make(workspace, "CoOp", tmp_path / "a").dm.dataset.test
    (tmp_path / "mine.txt").write_text(f"{Path(items[0].impath).name}\n")
    with pytest.raises(UsageError, match="line 1: 2 training images have the name"):
        listed([items[0], items[0]], tmp_path / "mine.txt")


def test_a_list_and_shots_are_a_contradiction_and_a_misspelt_list_is_named(workspace, tmp_path):
    with pytest.raises(UsageError, match="choose one"):
        runs.make(workspace, "CoOp", tmp_path, "--labels simclr-1 --shots 2")
    with pytest.raises(UsageError, match=r"Did you mean 'simclr-10'|Did you mean 'simclr-1'"):
        runs.make(workspace, "CoOp", tmp_path, "--labels simclr_1 --shots -1")


def reference_quotas(sizes: list[int], percent: float) -> list[int]:
    """The authors' rule, class by class."""
    n, c, p = sum(sizes), len(sizes), percent / 100.0
    shares = [max(min(n / c * p - 1.0, size), 1.0) for size in sizes]
    while True:
        total, quotas = 0.0, []
        for share, size in zip(shares, sizes, strict=True):
            total += share
            rounded = math.ceil(share) if total - total // 1 > 0.5 else math.floor(share)
            quotas.append(min(rounded, size))
        if sum(quotas) >= n * p:
            return quotas
        shares = [min(share + 1 / c, size) for share, size in zip(shares, sizes, strict=True)]


@pytest.mark.parametrize(
    ("sizes", "percent"),
    [([1300] * 7 + [732, 900, 1000], 1), ([30, 7, 12, 1, 55, 20], 10), ([4] * 6, 1), ([9, 2, 9, 9], 60), ([3, 5], 100)],
)
def test_the_authors_draw_against_a_slow_one(sizes, percent):
    quotas = reference_quotas(sizes, percent)
    assert class_quotas(sizes, percent).tolist() == quotas
    generator = np.random.RandomState(13)
    taken = [generator.choice(size, quota, replace=False).tolist() for size, quota in zip(sizes, quotas, strict=True)]
    assert balanced_draw(sizes, percent) == taken


def test_the_authors_counts_on_imagenet():
    sizes = [1300] * 895 + [1120] * 104 + [732 + 457]  # only their number and sum matter: no class is near its limit
    sizes[-1] += labels.IMAGENET_IMAGES - sum(sizes)
    assert sum(sizes) == 1_281_167
    one, ten = class_quotas(sizes, 1), class_quotas(sizes, 10)
    assert (one.sum(), set(one.tolist())) == (13_000, {13})
    assert (ten.sum(), set(ten.tolist())) == (128_286, {128, 129})


def test_the_authors_draw_does_not_depend_on_the_order_of_the_listing(workspace, tmp_path, capsys):
    trainer = runs.make(workspace, "LinearProbeDHO", tmp_path / "a", "--labels authors-1 --shots -1")
    labeled = trainer.dm.dataset.train_x
    assert [item.label for item in labeled] == list(range(6)) and len(trainer.unlabeled_paths()) == 18
    out = capsys.readouterr().out
    assert "authors-1: 6 of 24 training images are labelled" in out and "not the authors' subset" in out
    everything = runs.make(workspace, "CoOp", tmp_path / "b", "--shots -1").dm.dataset.train_x
    positions = balanced_draw([4] * 6, 1)
    assert [Path(item.impath).name for item in labeled] == [
        f"{wnid}_{taken[0]}.JPEG" for wnid, taken in zip(tiny.WNIDS, positions, strict=True)
    ]
    again = drawn(everything[::-1], 1)
    assert [item.impath for item in again][::-1] == [item.impath for item in labeled]


def test_the_authors_draw_is_over_all_classes(workspace, tmp_path):
    options = "--labels authors-10 --shots -1"
    with pytest.raises(UsageError, match="authors-10 is drawn over all classes"):
        runs.make(workspace, "CoOp", tmp_path, options, "DATASET.SUBSAMPLE_CLASSES base")
    with pytest.raises(UsageError, match="Did you mean 'authors-10'"):
        runs.make(workspace, "CoOp", tmp_path, "--labels author-10 --shots -1")
