"""Splits that CoOp has cached: compared, used on request, and never trusted."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path

import layouts
import pytest
import tiny
from test_catalogue import build, content

from dho_plugin import cli
from dho_plugin.datasets.split_cache import cache_files, read_cache
from dho_plugin.errors import UsageError
from dho_plugin.host import DATASET_REGISTRY, Datum, set_random_seed

COOP = ("DATASET.SPLIT_CACHE", "coop")
NAME = "EuroSAT"


@pytest.fixture
def folder(tmp_path) -> Path:
    return layouts.write(tmp_path / "data", NAME)


def cache(folder: Path, shots: int = 2, seed: int = 1, *, of: int | None = None) -> Path:
    """A cache for K and seed that holds the split of seed `of`."""
    drawn, _ = build(folder.parent, NAME, shots, seed=of or seed)
    return layouts.write_cache(cache_files(folder, shots, seed)[0], train=drawn.train_x, val=drawn.val)


def test_the_same_split_is_said_to_be_the_same(folder, capsys):
    plain, _ = build(folder.parent, NAME, 2)
    file = cache(folder)
    dataset, _ = build(folder.parent, NAME, 2)
    assert content(dataset.train_x) == content(plain.train_x)
    assert f"CoOp's split of {file} is the one drawn here; this run uses its own" in capsys.readouterr().out
    build(folder.parent, NAME, 1)
    assert "CoOp's split" not in capsys.readouterr().out  # of other K


def test_another_split_is_said_to_differ_and_used_on_request(folder, capsys):
    ours, _ = build(folder.parent, NAME, 2)
    cache(folder, of=2)
    theirs, _ = build(folder.parent, NAME, 2, seed=2)
    other = sum(
        len(set(content(a)) - set(content(b))) for a, b in ((ours.train_x, theirs.train_x), (ours.val, theirs.val))
    )
    capsys.readouterr()
    dataset, _ = build(folder.parent, NAME, 2)
    assert content(dataset.train_x) == content(ours.train_x) and content(dataset.val) == content(ours.val)
    assert (
        f" differs in {other} of 12 images from the one drawn here; this run uses its own (" in capsys.readouterr().out
    )
    dataset, _ = build(folder.parent, NAME, 2, *COOP)
    assert content(dataset.train_x) == content(theirs.train_x) and content(dataset.val) == content(theirs.val)
    assert f" differs in {other} of 12 images from the one drawn here; this run uses it\n" in capsys.readouterr().out


def test_the_same_images_in_another_order(folder, capsys):
    drawn, _ = build(folder.parent, NAME, 2)
    layouts.write_cache(cache_files(folder, 2, 1)[0], train=drawn.train_x[::-1], val=drawn.val)
    build(folder.parent, NAME, 2)
    assert "has the images drawn here in another order" in capsys.readouterr().out


def test_a_dataset_that_has_moved(folder, tmp_path, capsys):
    cache(folder, of=2)
    theirs, _ = build(folder.parent, NAME, 2, seed=2)
    (tmp_path / "eurosat").mkdir()  # the dataset's name may stand above it too
    shutil.move(folder.parent, tmp_path / "eurosat" / "moved")
    dataset, _ = build(tmp_path / "eurosat" / "moved", NAME, 2, *COOP)
    assert [Path(i.impath).name for i in dataset.train_x] == [Path(i.impath).name for i in theirs.train_x]
    assert all(str(tmp_path / "eurosat" / "moved") in item.impath for item in dataset.train_x)


def test_base_and_new_classes_of_a_cached_split(folder):
    cache(folder, of=2)
    for part in ("base", "new"):
        options = ("DATASET.SUBSAMPLE_CLASSES", part)
        theirs, _ = build(folder.parent, NAME, 2, *options, seed=2)
        dataset, _ = build(folder.parent, NAME, 2, *options, *COOP)
        assert content(dataset.train_x) == content(theirs.train_x) and content(dataset.val) == content(theirs.val)


def test_images_that_are_not_in_the_split(folder, capsys):
    drawn, _ = build(folder.parent, NAME, 2)
    test = drawn.test[:2]
    layouts.write_cache(cache_files(folder, 2, 1)[0], train=[*drawn.train_x[1:], *test], val=drawn.val)
    build(folder.parent, NAME, 2)
    assert "has 2 images that the dataset lacks or labels otherwise, first '" in capsys.readouterr().out
    with pytest.raises(UsageError, match=f"has 2 images that the dataset lacks.* first '{test[0].impath}'"):
        build(folder.parent, NAME, 2, *COOP)


def test_coops_split_is_wanted_and_there_is_none(folder):
    with pytest.raises(UsageError, match=r"no split at .*/split_fewshot/shot_2-seed_1\.pkl"):
        build(folder.parent, NAME, 2, *COOP)
    build(folder.parent, NAME, -1, *COOP)  # all images: nothing is drawn, nor cached
    with pytest.raises(UsageError, match=r"SPLIT_CACHE 'coops': .* Did you mean 'coop'"):
        build(folder.parent, NAME, 2, "DATASET.SPLIT_CACHE", "coops")


class Evil:
    def __init__(self, call, *arguments) -> None:
        self.how = (call, arguments)

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("call", "named"), [(os.mkdir, r"(posix|nt)\.mkdir"), (eval, r"(builtins|__builtin__)\.eval"), (getattr, "getattr")]
)
@pytest.mark.parametrize("options", [(), COOP], ids=["ours", "coop"])
def test_a_pickle_that_runs_something_is_refused(folder, tmp_path, protocol, call, named, options):
    canary = tmp_path / "canary"
    arguments = {os.mkdir: (str(canary),), eval: (f"open({str(canary)!r}, 'w')",), getattr: (canary, "touch")}[call]
    file = cache_files(folder, 2, 1)[0]
    file.parent.mkdir()
    file.write_bytes(pickle.dumps({"train": [Evil(call, *arguments)], "val": []}, protocol=protocol))
    with pytest.raises(UsageError, match=rf"shot_2-seed_1\.pkl is no split .*it asks for '.*{named}"):
        build(folder.parent, NAME, 2, *options)
    assert not canary.exists()
    if call is not getattr:
        pickle.loads(file.read_bytes())
        assert canary.exists()  # it would have run


def test_what_is_let_in_cannot_be_changed(folder):
    """A pickle may set attributes of a class that it names: not the host's, nor the one for the next file."""
    file = cache(folder)
    good = read_cache(file)
    spoiled = file.with_name("spoiled.pkl")
    # {"train": [Datum]} after BUILD of the class Datum with the state (None, {"_impath": "x"})
    spoiled.write_bytes(b"}S'train'\n(cdassl.data.datasets.base_dataset\nDatum\n(N}S'_impath'\nS'x'\nstblsN.")
    with pytest.raises(UsageError, match="is no split"):
        read_cache(spoiled)
    assert read_cache(file) == good
    assert "_impath" not in vars(Datum)


@pytest.mark.parametrize(
    "damaged",
    [
        lambda good: b"",
        lambda good: good[: len(good) // 2],
        lambda good: b"<html>quota exceeded</html>",
        lambda good: pickle.dumps([1, 2]),
        lambda good: pickle.dumps({"train": ["a.jpg"], "val": []}),
        lambda good: good.replace(b"K\x01", b"N", 1).replace(b"_label", b"_lebal"),
    ],
    ids=["empty", "cut", "html", "list", "strings", "fields"],
)
def test_a_damaged_cache(folder, damaged):
    file = cache(folder)
    file.write_bytes(damaged(file.read_bytes()))
    with pytest.raises(UsageError, match=r"shot_2-seed_1\.pkl is no split as CoOp caches it \(.*move it away"):
        build(folder.parent, NAME, 2)


def test_a_cache_without_validation_images(folder):
    drawn, _ = build(folder.parent, NAME, 2)
    layouts.write_cache(cache_files(folder, 2, 1)[0], train=drawn.train_x)
    with pytest.raises(UsageError, match="has no 'val' split"):
        build(folder.parent, NAME, 2)


def imagenet(root: Path, *options: str):
    line = f"--trainer CoOp --dataset imagenet --root {root} --shots 2"
    cfg = cli.build_config(cli.parser().parse_args([*line.split(), *options]))
    set_random_seed(cfg.SEED)
    return DATASET_REGISTRY.get("ImageNet")(cfg)


def test_imagenets_split_is_compared_too(tmp_path, capsys):
    tiny.imagenet_tree(tmp_path)
    ours = imagenet(tmp_path)
    file, listing = cache_files(tmp_path / "imagenet", 2, 1)
    everything = imagenet(tmp_path, "DATASET.NUM_SHOTS", "-1").train_x
    # CoOp lists in the file system's order, here some order, and draws from that.
    order = random.Random(5).sample(everything, len(everything))
    order.sort(key=lambda item: item.label)
    layouts.write_cache(listing, train=order, test=ours.test)
    set_random_seed(1)
    theirs = ours.generate_fewshot_dataset(order, num_shots=2)
    state = random.getstate()
    capsys.readouterr()
    assert content(imagenet(tmp_path).train_x) == content(ours.train_x) != content(theirs)
    assert random.getstate() == state
    assert f"CoOp's split of {listing} differs in" in capsys.readouterr().out
    assert content(imagenet(tmp_path, *COOP).train_x) == content(theirs)
    layouts.write_cache(file, train=theirs[::-1])  # where the split itself is cached, that is CoOp's
    assert content(imagenet(tmp_path, *COOP).train_x) == content(theirs[::-1])
