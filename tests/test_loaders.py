from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import WNIDS, imagenet_tree
from torchvision.transforms import InterpolationMode

from dho_plugin.loaders import EpochLoader, Sizes, StepBatches, ViewSource
from dho_plugin.views import ViewPolicy, draw_view, image_key, read_image, render

BICUBIC = InterpolationMode.BICUBIC


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return imagenet_tree(tmp_path_factory.mktemp("tree"))


def source(root: Path, classes: list[str], stream: int, teacher: int | None = 24, seed: int = 3) -> ViewSource:
    paths = [str(p) for wnid in classes for p in sorted((root / "imagenet/images/train" / wnid).iterdir())]
    return ViewSource(
        paths,
        root=str(root),
        sizes=Sizes(16, teacher),
        policy=ViewPolicy(),
        interpolation=BICUBIC,
        seed=seed,
        stream=stream,
    )


def batches(root: Path, **kwargs) -> StepBatches:
    return StepBatches(source(root, WNIDS[:1], 0, **kwargs), [7] * 4, 3, source(root, WNIDS[1:], 1, **kwargs), 5)


def flatten(batch: dict) -> list[torch.Tensor]:
    return [batch[key] for key in sorted(batch) if key != "unlabeled"] + [
        batch["unlabeled"][key] for key in sorted(batch.get("unlabeled", {}))
    ]


def test_a_batch_holds_both_views_of_the_crop_that_was_drawn(root):
    labeled = source(root, WNIDS, 0)
    batch = labeled.batch(20, 6)  # crosses the end of the first pass of 24 images
    for row, position in enumerate(range(20, 26)):
        index, pass_ = labeled.order[position]
        assert pass_ == position // 24
        path = labeled.paths[index]
        image = read_image(path)
        view = draw_view(*image.size, ViewPolicy(), seed=3, key=image_key(path, root), pass_=pass_)
        assert torch.equal(batch["img"][row], render(image, view, 16, BICUBIC))
        assert torch.equal(batch["img_teacher"][row], render(image, view, 24, BICUBIC))
        assert batch["index"][row] == index


def test_no_teacher_no_teacher_view(root):
    assert "img_teacher" not in source(root, WNIDS, 0, teacher=None).batch(0, 2)


def test_the_unlabeled_part_has_no_label(root):
    batch = batches(root)[0]
    assert set(batch["unlabeled"]) == {"img", "img_teacher", "index"}
    assert batch["label"].tolist() == [7, 7, 7]
    assert len(batch["unlabeled"]["img"]) == 5


def test_the_shorter_set_comes_round_and_neither_is_cut(root):
    steps = batches(root)
    seen = torch.cat([steps[k]["index"] for k in range(8)]).tolist()  # 24 draws of 4 images
    assert [seen.count(i) for i in range(4)] == [6, 6, 6, 6]
    unlabeled = torch.cat([steps[k]["unlabeled"]["index"] for k in range(4)]).tolist()  # 20 draws of 20 images
    assert sorted(unlabeled) == list(range(20))


def test_any_step_is_the_same_whatever_came_before_and_whoever_makes_it(root):
    straight = [batches(root)[k] for k in range(6)]
    epochs = []
    for workers in (0, 2):
        loader = EpochLoader(batches(root), steps=3, workers=workers, pin_memory=False)
        loader.set_epoch(1)
        epochs.append(list(loader))
    for expected, one, two in zip(straight[3:], *epochs, strict=True):
        for a, b, c in zip(flatten(expected), flatten(one), flatten(two), strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)


def test_labelled_batches_do_not_depend_on_the_unlabelled_set(root):
    alone = StepBatches(source(root, WNIDS[:1], 0), [7] * 4, 3, None, 0)[2]
    together = batches(root)[2]
    assert torch.equal(alone["img"], together["img"])


def test_another_seed_gives_other_batches(root):
    assert not torch.equal(batches(root)[0]["img"], batches(root, seed=4)[0]["img"])
