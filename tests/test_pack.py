"""`pack`: the same layout with shrunk images, whole files only, and runs on it that say so."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
from PIL import Image

from dho_plugin import __main__ as command
from dho_plugin import pack
from dho_plugin.datasets.own_files import read_entries
from dho_plugin.errors import UsageError
from dho_plugin.packed import pack_of
from dho_plugin.views import ViewPolicy, draw_view

SMALL = "--shorter 32 --workers 1"


def run(root: Path, output: Path, options: str = SMALL) -> int:
    return pack.main(f"--root {root} --output {output} {options}".split())


def record(folder: Path) -> dict:
    return json.loads((folder / "pack.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "pack.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)


@pytest.fixture
def root(tmp_path) -> Path:
    """Images of several kinds, of which large.* are to be shrunk, and other files."""
    folder = tmp_path / "data"
    (folder / "set/images/a b").mkdir(parents=True)
    kinds = {"JPG": {}, "png": {}, "webp": {}, "bmp": {}, "tif": {}, "ppm": {}}
    for suffix, options in kinds.items():
        photo(90, 60).save(folder / f"set/images/large.{suffix}", **options)
    photo(60, 90).convert("L").save(folder / "set/images/a b/large grey.jpeg")
    photo(120, 64).quantize(8).save(folder / "set/images/animated.gif")
    photo(40, 32).save(folder / "set/images/small.jpg")
    (folder / "set/split.json").write_text('{"train": []}')
    (folder / "set/.hidden").write_text("no")
    (folder / "archives").mkdir()
    (folder / "archives/set.tar").write_text("no")
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    return folder


def test_the_layout_stays_and_only_large_images_change(root, tmp_path, capsys):
    out = tmp_path / "packed"
    assert run(root, out) == 0
    before, after = contents(root), contents(out)
    assert set(after) == {name for name in before if ".hidden" not in name and "archives" not in name}
    for name in after:
        if "large" not in name:
            assert after[name] == before[name], name
            continue
        with Image.open(root / name) as old, Image.open(out / name) as new:
            assert (new.format, new.mode) == (old.format, old.mode)
            assert sorted(new.size) == [32, 48] and (new.width > new.height) == (old.width > old.height)
            expected = np.asarray(old.resize(new.size, Image.Resampling.LANCZOS)).astype(int)
            assert np.abs(np.asarray(new).astype(int) - expected).mean() < 8
    said = record(out)
    assert (said["root"], said["shorter"], said["quality"], said["complete"]) == (str(root), 32, 92, True)
    assert (said["files"], said["unreadable"]) == (10, [])
    assert "7 shrunk, 3 copied" in capsys.readouterr().out


def test_several_processes_write_the_same(tmp_path):
    tiny.imagenet_tree(tmp_path / "data")
    run(tmp_path / "data", tmp_path / "one")
    run(tmp_path / "data", tmp_path / "two", "--shorter 32 --workers 2")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_interrupted_run_goes_on(root, tmp_path, monkeypatch):
    straight, out = tmp_path / "straight", tmp_path / "packed"
    run(root, straight)
    whole, done = pack.pack_file, []

    def some(job):
        if len(done) == 4:
            (Path(job.target).parent / ".packing-left").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(job.source)
        return whole(job)

    monkeypatch.setattr(pack, "pack_file", some)
    with pytest.raises(KeyboardInterrupt):
        run(root, out)
    assert not record(out)["complete"]
    with pytest.raises(UsageError, match=r"pack in \S+ is not finished: run its `pack` command again"):
        pack_of([str(out / "set/images/large.png")])
    monkeypatch.setattr(pack, "pack_file", lambda job: done.append(job.source) or whole(job))
    run(root, out)
    assert len(done) == len(set(done)) == 10
    next(out.rglob(".packing-left")).unlink()
    assert contents(out) == contents(straight) and record(out)["complete"]
    done.clear()
    photo(200, 100).save(root / "set/images/large.png")
    run(root, out)
    assert done == [str(root / "set/images/large.png")]
    assert Image.open(out / "set/images/large.png").size == (64, 32)


def test_a_file_is_never_half_there(root, tmp_path, monkeypatch):
    out, whole = tmp_path / "packed", os.replace

    def replace(old, new):
        if Path(old).name.startswith(".packing-"):
            raise OSError(28, "No space left on device")
        whole(old, new)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(UsageError, match=r"No space left.*goes on from there"):
        run(root, out)
    assert all(Path(name).name.startswith(".packing-") for name in contents(out))


def test_unreadable_images_are_copied_and_listed_by_every_run(root, tmp_path, capsys):
    content = (root / "set/images/large.JPG").read_bytes()[:-300]
    (root / "set/images/large.JPG").write_bytes(content)
    os.utime(root / "set/images/large.JPG", (1e9, 1e9))
    for _ in range(2):
        assert run(root, tmp_path / "packed") == 0
        assert f"unreadable, copied as it is: {root}/set/images/large.JPG" in capsys.readouterr().out
        assert record(tmp_path / "packed")["unreadable"] == [f"{root}/set/images/large.JPG"]
    assert (tmp_path / "packed/set/images/large.JPG").read_bytes() == content


def test_links_are_followed_once(root, tmp_path):
    (root / "set/images/again").symlink_to(root / "set", target_is_directory=True)
    (root / "linked").symlink_to(root / "set/images/large.png")
    run(root, tmp_path / "packed")
    assert len(list((tmp_path / "packed").rglob("split.json"))) == 1
    assert (tmp_path / "packed/linked").is_file() and not (tmp_path / "packed/linked").is_symlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--root {data} --output {data}/x", "one lies in the other"),
        ("--root {data}/set --output {data}", "one lies in the other"),
        ("--root {data} --output {data}", "one lies in the other"),
        ("--root {data}/no --output {out}", "no such folder"),
        ("--root {data} --output {full}", "not empty and no pack"),
        ("--root {data} --output {full}/a.txt", "is a file"),
        ("--root {data} --output {pack} --shorter 48", "a pack with shorter 32: give another"),
        ("--root {data} --output {pack} --shorter 32 --quality 80", "a pack with quality 92"),
        ("--root {data}/set --output {pack} --shorter 32", "a pack with root '.*data'"),
        ("--root {data} --output {out} --shorter 3", "--shorter 3: expected a number from 32"),
        ("--root {data} --output {out} --quality 101", "--quality 101"),
        ("--root {data} --output {out} --workers 0", "--workers 0"),
        ("--root {data} --output {out} --dataset imagenett", "Did you mean 'imagenet'"),
        ("--root {data} --output {out} --dataset dtd", "no images of dtd below"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(root, tmp_path, options, message):
    places = {name: tmp_path / name for name in ("data", "out", "full", "pack")}
    places["full"].mkdir()
    (places["full"] / "a.txt").write_text("mine")
    run(root, places["pack"])
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=message):
        pack.main(options.format(**places).split())
    assert contents(tmp_path) == before


def test_a_full_disk_is_said_first(root, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    words = f"pack --root {root} --output {tmp_path / 'packed'} {SMALL}".split()
    assert command.main(words) == 2
    said = capsys.readouterr()
    assert "not started: about" in said.err
    assert not (tmp_path / "packed").exists()


def test_the_estimate_is_what_is_written(tmp_path, capsys, monkeypatch):
    tiny.imagenet_tree(tmp_path / "data", train=12)
    monkeypatch.setattr(pack, "GIB", 1)
    run(tmp_path / "data", tmp_path / "packed")
    said = next(line for line in capsys.readouterr().out.splitlines() if "GiB packed" in line)
    estimated = float(said.partition("about ")[2].split()[0])
    assert estimated == pytest.approx(sum(map(len, contents(tmp_path / "packed").values())), rel=0.02)


def test_a_view_of_the_default_has_as_many_pixels_as_are_asked_for():
    for side, shown in ((480, 336), (320, 224)):
        width, height = round(side * 4 / 3), side
        views = [draw_view(width, height, ViewPolicy(), seed=0, key=0, pass_=p) for p in range(3000)]
        smallest = min(min(view.width, view.height) for view in views)
        assert shown <= smallest < 1.05 * shown


def test_runs_on_a_pack_say_so(workspace, tmp_path, capsys):
    out = tmp_path / "packed"
    assert run(workspace, out, f"{SMALL} --dataset imagenet") == 0
    assert [path.name for path in out.iterdir()] == ["imagenet"]
    assert record(out / "imagenet")["dataset"] == "imagenet"
    run(workspace, out, f"{SMALL} --dataset imagenet_a")  # beside it
    for model in ("student.safetensors", "teacher.pt"):
        shutil.copy(workspace / model, out)
    assert list(runs.run(out, "LinearProbeDHO", tmp_path / "a")) == ["test (packed)"]
    assert f"PACKED: the images are {out}/imagenet's, shrunk to a shorter side of 32 pixels" in capsys.readouterr().out
    packed = json.loads((tmp_path / "a/manifest.json").read_text())["packed"]
    assert (packed["folder"], packed["root"], packed["shorter"]) == (f"{out}/imagenet", str(workspace), 32)
    runs.run(workspace, "LinearProbe", tmp_path / "b")
    assert json.loads((tmp_path / "b/manifest.json").read_text())["packed"] is None


def test_images_of_ones_own(tmp_path):
    for name in ("ash", "oak"):
        for number in range(2):
            tiny.write_image(tmp_path / f"mine/train/{name}/{number}.jpg", np.random.default_rng(0), 0)
    run(tmp_path / "mine", tmp_path / "packed")
    assert len(read_entries(tmp_path / "packed")) == len(read_entries(tmp_path / "mine")) == 4
    assert pack_of([str(tmp_path / "packed/train/ash/0.jpg")])["shorter"] == 32
    (tmp_path / "link").symlink_to(tmp_path / "packed/train")
    assert pack_of([str(tmp_path / "link/ash/0.jpg")])["shorter"] == 32
    assert pack_of([str(tmp_path / "mine/train/ash/0.jpg")]) is None
    (tmp_path / "packed/pack.json").write_text("[]")
    with pytest.raises(UsageError, match="is no record of a pack"):
        pack_of([str(tmp_path / "packed/train/ash/0.jpg")])
