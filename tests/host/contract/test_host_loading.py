"""DataManager: loaders, batches, transforms and the printed summary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from host_toy import SIZES
from PIL import Image
from torch.utils.data import RandomSampler, SequentialSampler

from dho_plugin import host


def test_batches_have_the_five_keys(config) -> None:
    batch = next(iter(host.DataManager(config()).train_loader_x))
    assert set(batch) == {"img", "label", "domain", "impath", "index"}
    assert batch["img"].shape == (4, 3, 8, 8)
    assert batch["img"].dtype == torch.float32
    assert batch["domain"].tolist() == [label % 2 for label in batch["label"].tolist()]


def test_index_points_into_the_split(config) -> None:
    manager = host.DataManager(config())
    for batch in manager.train_loader_u:
        items = [manager.dataset.train_u[i] for i in batch["index"].tolist()]
        assert [item.impath for item in items] == list(batch["impath"])
        assert [item.label for item in items] == batch["label"].tolist()


def test_training_is_shuffled_and_drops_the_rest_while_testing_is_neither(config) -> None:
    manager = host.DataManager(config())
    assert isinstance(manager.train_loader_x.sampler, RandomSampler)
    assert isinstance(manager.test_loader.sampler, SequentialSampler)
    assert [len(b["index"]) for b in manager.train_loader_x] == [4, 4]
    assert torch.cat([b["index"] for b in manager.test_loader]).tolist() == list(range(sum(SIZES["test"])))


def test_a_split_smaller_than_a_batch_is_one_batch(config) -> None:
    loader = host.DataManager(config("DATALOADER.TRAIN_X.BATCH_SIZE", 64)).train_loader_x
    assert [len(b["index"]) for b in loader] == [sum(SIZES["train_x"])]


@pytest.mark.parametrize(("same", "size"), [(True, 4), (False, 6)])
def test_unlabelled_batches_follow_train_x_unless_told_otherwise(config, same: bool, size: int) -> None:
    options = ("DATALOADER.TRAIN_U.SAME_AS_X", same, "DATALOADER.TRAIN_U.BATCH_SIZE", 6)
    manager = host.DataManager(config(*options, "DATALOADER.TRAIN_U.SAMPLER", "SequentialSampler"))
    assert manager.train_loader_u.batch_size == size
    assert isinstance(manager.train_loader_u.sampler, RandomSampler if same else SequentialSampler)


def test_classes_and_domains_are_reported(config) -> None:
    manager = host.DataManager(config("DATASET.SOURCE_DOMAINS", ("photo", "sketch")))
    assert manager.num_classes == 3
    assert manager.num_source_domains == 2
    assert manager.lab2cname[2] == "cedar"


def test_summary_lists_the_sizes(config, capsys: pytest.CaptureFixture[str]) -> None:
    host.DataManager(config())
    rows = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines() if line.startswith("# "))
    assert rows == {"# classes": "3", "# train_x": "10", "# train_u": "23", "# val": "6", "# test": "6"}


def test_the_test_transform_resizes_crops_and_normalises(config) -> None:
    manager = host.DataManager(config("INPUT.PIXEL_MEAN", [0.5, 0.4, 0.3], "INPUT.PIXEL_STD", [0.1, 0.2, 0.3]))
    batch = next(iter(manager.test_loader))
    # 12 x 10 pixels: the shorter side becomes 8, the longer int(12 * 8 / 10) = 9; the crop takes columns 0 to 8.
    with Image.open(batch["impath"][0]) as image:
        pixels = np.asarray(image.resize((9, 8), Image.Resampling.BILINEAR).crop((0, 0, 8, 8)), dtype=np.float32) / 255
    expected = (pixels - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    torch.testing.assert_close(batch["img"][0].permute(1, 2, 0), torch.from_numpy(expected).float())


@pytest.mark.parametrize(
    "names",
    [
        ("random_resized_crop", "random_flip", "normalize"),
        ("random_crop", "colorjitter"),
        ("randomgrayscale", "center_crop"),
        (),
    ],
)
def test_augmentations_keep_the_size(config, names: tuple[str, ...]) -> None:
    batch = next(iter(host.DataManager(config("INPUT.TRANSFORMS", names)).train_loader_x))
    assert batch["img"].shape == (4, 3, 8, 8)


def test_an_image_can_be_viewed_several_times(config) -> None:
    cfg = config("DATALOADER.K_TRANSFORMS", 2, "DATALOADER.RETURN_IMG0", True)
    manager = host.DataManager(cfg, custom_tfm_train=[lambda _: torch.zeros(1), lambda _: torch.ones(1)])
    batch = next(iter(manager.train_loader_x))
    assert [view.sum().item() for view in batch["img"]] == [0.0, 0.0]
    assert [view.sum().item() for view in batch["img2"]] == [4.0, 4.0]
    assert batch["img0"].shape == (4, 3, 8, 8)
    assert "img2" not in next(iter(manager.test_loader))


def test_the_dataset_wrapper_can_be_replaced(config) -> None:
    class Lengths(torch.utils.data.Dataset):
        def __init__(self, cfg, data_source, transform=None, is_train=False):
            self.data_source, self.is_train = data_source, is_train

        def __len__(self):
            return len(self.data_source)

        def __getitem__(self, index):
            return self.is_train

    manager = host.DataManager(config(), dataset_wrapper=Lengths)
    assert next(iter(manager.train_loader_x)).tolist() == [True] * 4
    assert next(iter(manager.test_loader)).tolist() == [False] * 4


def test_unknown_transforms_and_samplers_are_refused(config) -> None:
    with pytest.raises((ValueError, AssertionError)):
        host.DataManager(config("INPUT.TRANSFORMS", ("random_flop",)))
    with pytest.raises(ValueError, match="RandomSampling"):
        host.DataManager(config("DATALOADER.TRAIN_X.SAMPLER", "RandomSampling"))
