"""Sets at their edges: a class without images, fewer images than a batch has, classes in another order."""

from __future__ import annotations

import shutil

import pytest
import runs
import tiny
import torch

from dho_plugin.classes import ClassList
from dho_plugin.errors import UsageError
from dho_plugin.loaders import Sizes, StepBatches, ViewSource
from dho_plugin.manifest import prompts_digest
from dho_plugin.views import INTERPOLATIONS, ViewPolicy


@pytest.mark.parametrize("shots", ["", "--shots 1"])
def test_a_class_without_a_labelled_image_shifts_no_other(workspace, tmp_path, shots):
    root = tmp_path / "root"
    shutil.copytree(workspace / "imagenet", root / "imagenet")
    for file in (root / "imagenet/images/train" / tiny.WNIDS[2]).iterdir():
        file.unlink()
    with pytest.raises(UsageError, match="1 of 6 classes have no labelled image, first 'n02012849'"):
        runs.make(workspace, "LinearProbe", tmp_path / "x", f"--root {root} {shots}")


@pytest.mark.parametrize("unlabeled", [1, 3])
@pytest.mark.parametrize("labeled", [1, 3])
def test_sets_smaller_than_a_batch_fill_it(workspace, labeled, unlabeled):
    paths = sorted(map(str, (workspace / "imagenet/images/train").rglob("*.JPEG")))

    def source(count: int, stream: int) -> ViewSource:
        how = {"policy": ViewPolicy(), "interpolation": INTERPOLATIONS["bilinear"], "seed": 0, "stream": stream}
        return ViewSource(paths[:count], root="/", sizes=Sizes(8), **how)

    batch = StepBatches(source(labeled, 0), list(range(labeled)), 8, source(unlabeled, 1), 5)[7]
    assert batch["img"].shape == (8, 3, 8, 8) and batch["unlabeled"]["img"].shape == (5, 3, 8, 8)
    for part, size in ((batch, labeled), (batch["unlabeled"], unlabeled)):
        counts = torch.bincount(part["index"], minlength=size)
        assert counts.max() - counts.min() <= 1 + len(part["index"]) % size


def test_no_unlabelled_image_is_an_error(workspace, tmp_path):
    with pytest.raises(UsageError, match="none is left unlabelled"):
        runs.make(workspace, "LinearProbeDHO", tmp_path, "--shots 4").train()


def test_classes_in_another_order_are_found_by_their_ids():
    trained = ClassList(tuple(tiny.WNIDS), tuple(tiny.NAMES))
    order = [3, 0, 5, 2, 1, 4]
    other = ClassList(tuple(tiny.WNIDS[i] for i in order), tuple(tiny.NAMES[i] for i in order))
    assert trained.rows(other).tolist() == order
    assert prompts_digest(["a {}"], trained.names) != prompts_digest(["a {}"], other.names)
    # Two classes have one name: the ids alone tell them apart.
    swapped = [0, 1, 3, 2, 4, 5]
    twins = ClassList(tuple(tiny.WNIDS[i] for i in swapped), tuple(tiny.NAMES[i] for i in swapped))
    assert twins.names == trained.names
    assert trained.rows(twins).tolist() == swapped
