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

from dho_plugin import blocks
from dho_plugin import contents as contents_module
from dho_plugin import store as store_module
from dho_plugin.blocks import Shard
from dho_plugin.contents import FILE, Contents
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
    store = Store(tmp_path, model)
    store.append(some_views(10), torch.zeros(10, 768))
    store.end_block()
    sizes = {path.suffix: path.stat().st_size for path in store.folder.iterdir() if path.suffix != ".json"}
    assert sizes.pop(".blocks") == 12  # for all of a block
    assert sum(sizes.values()) == 10 * 1553 <= 10 * 1600


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
    written(tmp_path)
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
        if i % 3 == 0:
            store.end_block()
    store.end_block()


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


def changed(file: Path, at: int, content: bytes) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        handle.write(content)


def written(root: Path) -> Store:
    """A store of three blocks of four entries."""
    store = Store(root, MODEL)
    for block in range(3):
        store.append(some_views(4, image=4 * block), numbers(4, 24 * block))
        store.end_block()
    return store


ENTRIES = np.concatenate([some_views(4, image=4 * block) for block in range(3)])


def test_what_a_killed_writer_left_half_is_not_there(tmp_path):
    store = written(tmp_path)
    store.append(some_views(2, image=12), numbers(2))  # and is killed before the block has ended
    again = Store(tmp_path, MODEL)
    assert len(again) == 12 and again.rows(some_views(2, image=12)).tolist() == [-1, -1]
    again.append(some_views(2, image=12), numbers(2))
    again.refresh()
    assert torch.equal(again.read(again.rows(some_views(2, image=12))).float(), numbers(2))


@pytest.mark.parametrize("cut", [".views", ".features"])
def test_blocks_that_are_cut_off_are_named_and_not_there(tmp_path, capsys, cut):
    file = next(written(tmp_path).folder.glob(f"*{cut}"))
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 3)
    again = Store(tmp_path, MODEL)
    again.refresh()
    assert again.rows(ENTRIES).tolist() == [*range(8), *[-1] * 4]
    assert capsys.readouterr().out.count("cut off behind entry 8; what is missing is computed again") == 1


DAMAGES = {
    "a power cut leaves zeros in features": (".features", 4 * 12, b"\0" * 4 * 12),
    "and in views": (".views", 4 * 17, b"\0" * 4 * 17),
    "a byte of a feature changes": (".features", 4 * 12 + 7, b"\x99"),
    "a byte of a view changes": (".views", 4 * 17 + 7, b"\x99"),
    "a byte of a checksum changes": (".blocks", 12 + 8, b"\x99"),
}


@pytest.mark.parametrize(("suffix", "at", "content"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_block_is_named_once_and_computed_again(tmp_path, capsys, suffix, at, content):
    file = next(written(tmp_path).folder.glob(f"*{suffix}"))
    changed(file, at, content)
    store = Store(tmp_path, MODEL)
    assert store.rows(ENTRIES[8:]).tolist() == [8, 9, 10, 11]
    assert store.rows(ENTRIES).tolist() == [0, 1, 2, 3, *[-1] * 4, *range(8, 12)] and len(store) == 8
    named = file.with_suffix(suffix if suffix != ".blocks" else ".features").name
    said = f"{named}: entries 4 to 7 are damaged, and computed again where they are needed\n"
    assert capsys.readouterr().out.endswith(said)
    store.append(ENTRIES[4:8], numbers(4, 24))
    store.refresh()
    assert len(store) == 12 and capsys.readouterr().out == ""
    for one in (store, Store(tmp_path, MODEL)):
        assert torch.equal(one.read(one.rows(ENTRIES)).float(), numbers(12))


def test_only_blocks_that_are_asked_for_are_read(tmp_path, monkeypatch):
    folder, read = written(tmp_path).folder, []
    compare = Shard._compare
    monkeypatch.setattr(
        Shard, "_compare", lambda shard, block, *rest: read.append((block, rest[0])) or compare(shard, block, *rest)
    )
    changed(next(folder.glob("*.features")), 0, b"\x99")
    store = Store(tmp_path, MODEL)
    assert read == [(0, ".views"), (1, ".views"), (2, ".views")]
    for _ in range(2):
        assert store.rows(ENTRIES[[9, 10, 4]]).tolist() == [9, 10, 4]
        store.refresh()
    assert read[3:] == [(1, ".features"), (2, ".features")]


def test_entries_are_on_the_disk_before_their_record_is(tmp_path, monkeypatch):
    synced = []

    def fsync(file: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        records = sum(other.stat().st_size for other in path.parent.glob("*.blocks"))
        synced.append((path.suffix, path.stat().st_size if path.is_file() else 0, records))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    store = Store(tmp_path, MODEL)
    monkeypatch.setattr(os, "fsync", fsync)
    store.append(some_views(4), numbers(4))
    assert synced == []
    store.end_block()
    assert synced[:3] == [(".features", 48, 0), (".views", 68, 0), (".blocks", 12, 12)]
    store.end_block()
    assert len(synced) == 4
    monkeypatch.setattr(blocks, "SECONDS", 0.0)
    store.append(some_views(4, image=4), numbers(4))
    assert len(synced) == 8


def test_a_model_is_known_whatever_it_is_called(tmp_path):
    written(tmp_path)
    for name in ("~/ViT-L-14-336px.pt", "/elsewhere/ViT-L/14@336px"):
        assert len(Store(tmp_path, MODEL._replace(name=name))) == 12
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_used_is_said(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for make in (lambda root: Store(root, MODEL), Contents):
        with pytest.raises(UsageError, match=r"cannot use .*file.*STORE\.DIR"):
            make(file)
    store = Store(tmp_path, MODEL)
    (store.folder / "1.blocks").mkdir()
    with pytest.raises(UsageError, match=r"1\.blocks.*STORE\.DIR"):
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
    store.append(some_views(4, image=20), numbers(4))
    with monkeypatch.context() as patch:
        no_room(patch, ".views", error)
        with pytest.raises(said, match="No space left" if error is FULL else None):
            store.append(some_views(3), numbers(3))
    assert len(Store(tmp_path, MODEL)) == 4  # what was whole before
    store.append(some_views(2, image=50), numbers(2, 100))
    store.refresh()
    assert len(store) == 6
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
        return [row[3:6] for row in Contents(tmp_path / "s").of(paths).tolist()]

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


@pytest.mark.parametrize("content", [b"\0" * 48, b"\x99"], ids=["zeros", "a changed byte"])
def test_a_damaged_record_of_a_file_is_named_and_the_file_read_again(tmp_path, capsys, content):
    paths = [str(tmp_path / f"{n}.bmp") for n in range(3)]
    for path in paths:
        Image.new("RGB", (30, 20), "red").save(path)
    first = Contents(tmp_path / "s").of(paths)
    (file,) = (tmp_path / "s").rglob("*.files")
    changed(file, FILE.itemsize + (24 if len(content) == 1 else 0), content)
    capsys.readouterr()
    assert (Contents(tmp_path / "s").of(paths) == first).all()
    said = capsys.readouterr().out
    assert f"{file.name}: 1 records are damaged" in said and "Reading 1 image files" in said


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
