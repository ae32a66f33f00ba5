"""The store of frozen features: found by content and view, appended by several, refused where it is another model's."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from dho_plugin import contents as contents_module
from dho_plugin import store as store_module
from dho_plugin.contents import Contents
from dho_plugin.errors import UsageError
from dho_plugin.store import VIEW, Model, Store, same_views, view_records, weights_hash
from dho_plugin.views import View

MODEL = Model("ViT-L/14@336px", "ab" * 32, 336, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "amp", 6, "float16")


def some_views(count: int, image: int = 0, flip: bool = False) -> np.ndarray:
    boxes = np.array([View(i, 2 * i, 30, 40, flip) for i in range(count)])
    return view_records(np.arange(image, image + count), boxes)


def numbers(count: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + 6 * count, dtype=torch.float32).view(count, 6) / 8


def test_what_is_appended_is_found_and_nothing_else(tmp_path):
    store = Store(tmp_path, MODEL)
    store.append(some_views(5), numbers(5))
    assert len(store) == 0
    store.refresh()
    again = Store(tmp_path, MODEL)
    for one in (store, again):
        assert len(one) == 5
        wanted = some_views(5)[[3, 0, 4]]
        assert one.rows(wanted).tolist() == [3, 0, 4]
        assert torch.equal(one.read(one.rows(wanted)).float(), numbers(5)[[3, 0, 4]])
        assert one.rows(some_views(5, flip=True)).tolist() == [-1] * 5
        assert one.rows(some_views(5, image=1)).tolist() == [-1] * 5
        for name in ("left", "top", "width", "height"):
            other = some_views(5)
            other[name] += 1
            assert one.rows(other).tolist() == [-1] * 5
    with pytest.raises(IndexError):
        store.read(np.array([-1]))
    with pytest.raises(IndexError):
        store.read(np.array([5]))


def test_equal_hashes_are_told_apart_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "hash64", lambda *words: np.zeros_like(words[0], dtype=np.uint64))
    store = Store(tmp_path, MODEL)
    store.append(some_views(3), numbers(3))
    store.refresh()
    assert store.rows(some_views(3)).tolist() == [0, -1, -1]  # found again or computed again, never confused


def test_bytes_of_a_view_of_a_large_teacher(tmp_path):
    model = MODEL._replace(width=768)
    Store(tmp_path, model).append(some_views(10), torch.zeros(10, 768))
    files = [path for path in model.folder(tmp_path).iterdir() if path.suffix != ".json"]
    assert sum(path.stat().st_size for path in files) == 10 * 1553 <= 10 * 1600


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "cd" * 32},
        {"size": 224},
        {"mean": (0.4, 0.5, 0.5)},
        {"interpolation": "bilinear"},
        {"precision": "fp32"},
        {"dtype": "float32"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_model_has_another_folder(tmp_path, change):
    Store(tmp_path, MODEL).append(some_views(2), numbers(2))
    other = Store(tmp_path, MODEL._replace(**change))
    assert len(other) == 0 and other.folder != Store(tmp_path, MODEL).folder
    other.folder.joinpath("store.json").write_text((MODEL.folder(tmp_path) / "store.json").read_text())
    with pytest.raises(UsageError, match=rf"another model, which differs in \['{next(iter(change))}'\]"):
        Store(tmp_path, MODEL._replace(**change))


def test_a_record_that_is_none_is_refused(tmp_path):
    folder = Store(tmp_path, MODEL).folder
    for text in ("{", "3"):
        (folder / "store.json").write_text(text)
        with pytest.raises(UsageError, match=r"move (it|.*) away"):
            Store(tmp_path, MODEL)


def write_many(root: Path, start: int) -> None:
    store = Store(root, MODEL)
    for i in range(20):
        store.append(some_views(7, image=start + 7 * i), numbers(7, start + 42 * i))


def test_two_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, 10_000 * n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = Store(tmp_path, MODEL)
    assert len(store) == 280
    for n in range(2):
        for i in range(20):
            rows = store.rows(some_views(7, image=10_000 * n + 7 * i))
            expected = numbers(7, 10_000 * n + 42 * i).half()
            assert torch.equal(store.read(rows), expected)


@pytest.mark.parametrize("cut", [".views", ".features"])
def test_what_a_killed_writer_left_half_is_not_there(tmp_path, cut):
    store = Store(tmp_path, MODEL)
    store.append(some_views(4), numbers(4))
    file = next(store.folder.glob(f"*{cut}"))
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 3)
    again = Store(tmp_path, MODEL)
    assert again.rows(some_views(4)).tolist() == [0, 1, 2, -1]
    again.append(some_views(4)[3:], numbers(4)[3:])
    again.refresh()
    assert torch.equal(again.read(again.rows(some_views(4))).float(), numbers(4))


def test_a_model_is_known_whatever_it_is_called(tmp_path):
    Store(tmp_path, MODEL).append(some_views(2), numbers(2))
    for name in ("~/ViT-L-14-336px.pt", "/elsewhere/ViT-L/14@336px"):
        assert len(Store(tmp_path, MODEL._replace(name=name))) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_used_is_said(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for make in (lambda root: Store(root, MODEL), Contents):
        with pytest.raises(UsageError, match=r"cannot use .*file.*STORE\.DIR"):
            make(file)
    store = Store(tmp_path, MODEL)
    (store.folder / "1.views").mkdir()
    with pytest.raises(UsageError, match=r"1\.views.*STORE\.DIR"):
        store.refresh()


def no_room(monkeypatch, suffix: str, error: BaseException) -> None:
    opened = Path.open

    def full(self, mode="r", *rest, **keywords):
        if self.suffix == suffix and "a" in mode:
            raise error
        return opened(self, mode, *rest, **keywords)

    monkeypatch.setattr(Path, "open", full)


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(("error", "said"), [(FULL, UsageError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_full_disk_is_said_and_what_comes_later_is_right(tmp_path, monkeypatch, error, said):
    store = Store(tmp_path, MODEL)
    with monkeypatch.context() as patch:
        no_room(patch, ".views", error)
        with pytest.raises(said, match="No space left" if error is FULL else None):
            store.append(some_views(3), numbers(3))
    store.append(some_views(2, image=50), numbers(2, 100))
    store.refresh()
    assert len(store) == 2
    assert torch.equal(store.read(store.rows(some_views(2, image=50))).float(), numbers(2, 100))


def test_features_that_are_not_finite_are_refused(tmp_path):
    store = Store(tmp_path, MODEL)
    bad = numbers(3)
    bad[1, 2] = 1e6  # more than half precision holds
    with pytest.raises(UsageError, match="not finite"):
        store.append(some_views(3), bad)
    store.refresh()
    assert len(store) == 0


def test_views_too_large_for_a_record_are_refused():
    with pytest.raises(UsageError, match="65,535"):
        view_records(np.array([1]), np.array([View(0, 0, 70_000, 10, False)]))
    largest = view_records(np.array([2**64 - 1]), np.array([View(1, 2, 3, 65_535, True)]))
    assert largest.tolist() == [(2**64 - 1, 1, 2, 3, 65_535, 1)]
    assert VIEW.itemsize == 17


def test_weights_are_known_by_value_and_name():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model[0].register_buffer("hidden", torch.ones(1), persistent=False)
    first = weights_hash(model)
    assert weights_hash(model) == first
    for tensor in (model[0].weight, model[1].running_mean, model[0].hidden):
        with torch.no_grad():
            tensor.view(-1)[0] += 1e-3
            assert weights_hash(model) != first
            tensor.view(-1)[0] -= 1e-3
    assert weights_hash(model.half()) != first
    convolution = torch.nn.Conv2d(3, 4, 2)
    first = weights_hash(convolution)
    assert weights_hash(convolution.to(memory_format=torch.channels_last)) == first


def test_contents_are_read_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    one, two, three = (tmp_path / f"{n}.jpg" for n in range(3))
    rng = np.random.default_rng(0)
    tiny.write_image(one, rng, 0, (30, 20))
    tiny.write_image(two, rng, 1, (40, 50))
    shutil.copy(one, three)
    paths = [str(one), str(two), str(three)]

    def of(paths: list[str]) -> list[tuple[int, ...]]:
        return [row[3:] for row in Contents(tmp_path / "s").of(paths).tolist()]

    monkeypatch.setattr(contents_module, "PORTION", 2)
    first = of(paths)
    assert first[0] == first[2] and first[0][0] != first[1][0]
    assert [content[1:] for content in first] == [(30, 20), (40, 50), (30, 20)]
    with monkeypatch.context() as patch:
        patch.setattr(contents_module, "image_size", lambda path: pytest.fail(f"opened {path}"))
        assert of(paths[::-1]) == first[::-1] and of([]) == []
    shutil.copy(one, two)
    os.utime(two, ns=(1, 1))
    assert of(paths) == [first[0]] * 3
    two.write_text("<html>")
    with pytest.raises(UsageError, match=r"1\.jpg"):
        of(paths)
    two.unlink()
    with pytest.raises(UsageError, match=r"cannot read the image .*1\.jpg"):
        of(paths)
    no_room(monkeypatch, ".files", FULL)
    tiny.write_image(two, rng, 2)
    with pytest.raises(UsageError, match=r"No space left.*STORE\.DIR"):
        of(paths)


@pytest.mark.parametrize(("pixels", "time"), [((30, 20), 2), ((20, 30), 2), ((40, 20), 1)])
def test_size_and_time_of_change_each_tell_that_a_file_is_another(tmp_path, pixels, time):
    path = tmp_path / "one.bmp"
    Image.new("RGB", (30, 20)).save(path)
    os.utime(path, ns=(1, 1))
    first = Contents(tmp_path / "s").of([str(path)])[0]
    Image.new("RGB", pixels, "red").save(path)
    os.utime(path, ns=(1, time))
    second = Contents(tmp_path / "s").of([str(path)])[0]
    assert second["image"] != first["image"] and (second["width"], second["height"]) == pixels


def test_equal_views_are_found_and_those_of_an_image_stand_together():
    rng = np.random.default_rng(0)
    views = np.concatenate([some_views(4), some_views(6), some_views(6, flip=True)])[rng.permutation(16)]
    different, at = same_views(views)
    assert len(different) == 12 and (different[at] == views).all()
    assert (np.diff(different["image"].astype(np.int64)) >= 0).all()
    assert [len(part) for part in same_views(views[:0])] == [0, 0]


def test_the_record_is_for_people_too(tmp_path):
    store = Store(tmp_path, MODEL)
    assert store.folder.name.startswith("ViT-L-14-336px-336px-")
    assert json.loads((store.folder / "store.json").read_text())["name"] == "ViT-L/14@336px"
