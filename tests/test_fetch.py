"""`data fetch` against a server on this machine: whole downloads and every way in which one goes wrong."""

from __future__ import annotations

import collections
import hashlib
import socket
import sys
import zipfile
from pathlib import Path

import layouts
import pytest
from serving import fake_gdown, serving

from dho_plugin import cli
from dho_plugin.__main__ import COMMANDS
from dho_plugin.__main__ import main as command
from dho_plugin.data import download as downloading
from dho_plugin.data import fetch as fetching
from dho_plugin.data import main, sources
from dho_plugin.data.download import download
from dho_plugin.data.sources import Source
from dho_plugin.datasets import CLASSES
from dho_plugin.errors import UsageError

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        server.files["f"] = CONTENT
        yield server


def source(url: str, content: bytes = CONTENT, **changes) -> Source:
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Source(url, "f", len(content), checksum, (("", "set/f"),))._replace(**changes)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_whole_file(server, tmp_path, capsys):
    path = download(source(server.url("f")), tmp_path)
    assert path.read_bytes() == CONTENT and names(tmp_path) == ["f"] and server.asked == [""]
    assert capsys.readouterr().out.splitlines()[-1] == "  f: 10,240 of 10,240 bytes"
    assert download(source(server.url("f")), tmp_path) == path
    assert len(server.asked) == 1  # what is there and right is not fetched again
    md5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    assert download(source("", checksum=md5), tmp_path) == path


@pytest.mark.parametrize(
    ("part", "ranges", "announce", "asked"),
    [
        (CONTENT[:4000], True, True, ["bytes=4000-"]),
        (CONTENT[:4000], True, False, ["bytes=4000-"]),
        (CONTENT[:4000], False, True, ["bytes=4000-"]),  # from the start again
        (CONTENT[:4000], "wrong", True, ["bytes=4000-", ""]),
        (CONTENT + b"stale", True, True, [""]),
        (CONTENT, True, True, []),
        (b"", True, True, [""]),
    ],
)
def test_what_came_before_is_gone_on_from(server, tmp_path, part, ranges, announce, asked):
    (tmp_path / "f.part").write_bytes(part)
    server.ranges, server.announce = ranges, announce
    assert download(source(server.url("f")), tmp_path).read_bytes() == CONTENT
    assert server.asked == asked and names(tmp_path) == ["f"]


def test_a_partial_file_that_the_server_calls_too_long(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT + b"stale")
    download(source(server.url("f"), bytes=None), tmp_path)
    assert server.asked == [f"bytes={len(CONTENT) + 5}-", ""] and names(tmp_path) == ["f"]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_cut_stream_and_the_next_attempt(server, tmp_path, size):
    server.cut = [3000]
    with pytest.raises(UsageError, match=r"f from http://127.*ended after 3,000 bytes. They are kept"):
        download(source(server.url("f"), bytes=size), tmp_path)
    assert names(tmp_path) == ["f.part"]
    assert download(source(server.url("f"), bytes=size), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=3000-"] and names(tmp_path) == ["f"]


def test_a_wrong_checksum(server, tmp_path):
    wrong = "sha256:" + "0" * 64
    got = hashlib.sha256(CONTENT).hexdigest()
    message = rf"not the published file: 10,240 bytes, sha256 {got}; expected 10,240 bytes, sha256 0{{64}}\."
    with pytest.raises(UsageError, match=message):
        download(source(server.url("f"), checksum=wrong), tmp_path)
    assert names(tmp_path) == []
    (tmp_path / "f").write_bytes(CONTENT)  # put there by hand, so not for us to delete
    with pytest.raises(UsageError, match=rf"{message} Delete {tmp_path}/f, or put the right file there"):
        download(source("", checksum=wrong), tmp_path)
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_an_html_page_instead(server, tmp_path, kind):
    server.files["f"] = b"\n<!DOCTYPE html><html>Quota exceeded" + bytes(len(CONTENT) - 36)
    server.kind, server.ranges = kind, False
    (tmp_path / "f.part").write_bytes(CONTENT[:4000])
    with pytest.raises(UsageError, match=r"f .*HTML page"):
        download(source(server.url("f"), checksum=""), tmp_path)
    kept = kind.startswith("text/html")  # the server says so before anything is written
    assert names(tmp_path) == (["f.part"] if kept else [])


def test_a_server_with_another_length(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT[:4000])
    server.files["f"] = CONTENT[:5000]
    with pytest.raises(UsageError, match="the server has 5,000 bytes of it"):
        download(source(server.url("f")), tmp_path)
    assert (tmp_path / "f.part").read_bytes() == CONTENT[:4000]


def test_a_stream_without_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "CHUNK", 1000)
    server.files["f"], server.announce = CONTENT * 10, False
    with pytest.raises(UsageError, match="sends more than 10,240 bytes"):
        download(source(server.url("f")), tmp_path)
    assert (tmp_path / "f.part").stat().st_size <= len(CONTENT)


# Google Drive


def drive(content: bytes = CONTENT, **changes) -> Source:
    return source("drive:ID", content, **changes)


def test_a_file_on_drive(tmp_path, monkeypatch, capsys):
    asked = fake_gdown(monkeypatch, {"ID": CONTENT})
    assert download(drive(), tmp_path).read_bytes() == CONTENT and asked == ["ID"] and names(tmp_path) == ["f"]
    download(drive(checksum="", bytes=None, file="g"), tmp_path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert f"g: 10,240 bytes, sha256 {digest}; none is published to compare it with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("came", "message"),
    [
        (
            b"<html><head><title>Google Drive - Quota exceeded",
            "HTML page, as a quota or a login gives, and begins with",
        ),
        (None, "Google Drive gave no file"),
        (RuntimeError("Too many users\n have viewed it"), "file/d/ID: RuntimeError: Too many users have viewed it"),
        (ConnectionError("no route"), "file/d/ID: ConnectionError: no route"),
    ],
)
def test_drive_gives_something_else(tmp_path, monkeypatch, came, message):
    fake_gdown(monkeypatch, {"ID": came})
    with pytest.raises(UsageError, match=message):
        download(drive(checksum="", bytes=None), tmp_path)
    assert names(tmp_path) == []


def test_gdown_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UsageError, match="pip install gdown"):
        download(drive(), tmp_path)


def test_a_split_file_of_other_numbers(tmp_path, monkeypatch):
    """It has no published checksum; its numbers are published."""
    content = (layouts.write(tmp_path / "m", "EuroSAT") / "split_zhou_EuroSAT.json").read_bytes()
    fake_gdown(monkeypatch, {"ID": content})
    split = drive(bytes=None, checksum="", file="split_zhou_EuroSAT.json")
    (tmp_path / "new").mkdir()
    with pytest.raises(
        UsageError, match=r"is not CoOp's: it has \(3, 18, 15, 6\) .*; expected \(10, 13500, 5400, 8100\)"
    ):
        download(split, tmp_path / "new")
    fake_gdown(monkeypatch, {"ID": b'{"train": []}'})
    with pytest.raises(UsageError, match="is not a split file"):
        download(split, tmp_path / "new")
    fake_gdown(monkeypatch, {"ID": b"n01440764 tench\n"})
    with pytest.raises(UsageError, match="names 1 classes; expected 1,000"):
        download(drive(bytes=None, checksum="", file="classnames.txt"), tmp_path / "new")
    assert names(tmp_path / "new") == []


# The command


def eurosat(monkeypatch, server, tmp_path) -> list[str]:
    """Put a miniature of EuroSAT on the servers and in the table; returns the ids that Drive is asked for."""
    folder = layouts.write(tmp_path / "miniature", "EuroSAT")
    with zipfile.ZipFile(tmp_path / "EuroSAT.zip", "w") as archive:
        for path in sorted(folder.glob("2750/*/*")):
            archive.write(path, path.relative_to(folder))
    server.files["EuroSAT.zip"] = (tmp_path / "EuroSAT.zip").read_bytes()
    images, split = sources.SOURCES["eurosat"]
    content = server.files["EuroSAT.zip"]
    sum_ = f"sha256:{hashlib.sha256(content).hexdigest()}"
    images = images._replace(url=server.url("EuroSAT.zip"), bytes=len(content), checksum=sum_)
    described = sources.DESCRIBED["EuroSAT"]._replace(classes=3, train=18, val=15, test=6)
    monkeypatch.setitem(sources.SOURCES, "eurosat", (images, split))
    monkeypatch.setitem(sources.DESCRIBED, "EuroSAT", described)
    return fake_gdown(monkeypatch, {split.url.removeprefix("drive:"): (folder / split.file).read_bytes()})


def fetch(root: Path, dataset: str, *options: str) -> int:
    return command(["data", "fetch", "--dataset", dataset, "--root", str(root), *options])


def test_a_data_set_from_nothing_to_its_reader(server, tmp_path, monkeypatch, capsys):
    asked = eurosat(monkeypatch, server, tmp_path)
    root = tmp_path / "new" / "root"
    assert fetch(root, "eurosat", "--dry-run") == 1
    out = capsys.readouterr().out
    assert server.url("EuroSAT.zip") in out and sources.SOURCES["eurosat"][0].checksum.replace(":", " ") in out
    assert not root.exists() and not server.asked
    assert fetch(root, "eurosat") == 0
    assert "eurosat: eurosat/2750 in place" in capsys.readouterr().out
    options = ["--trainer", "CoOp", "--dataset", "eurosat", "--root", str(root), "--shots", "-1"]
    dataset = CLASSES["EuroSAT"](cli.build_config(cli.parser().parse_args(options)))
    assert collections.Counter(item.label for item in dataset.train_x) == {0: 6, 1: 6, 2: 6}
    assert {path.name for path in root.iterdir()} == {"eurosat", "archives"}
    assert names(root / "archives") == ["eurosat.lock"]
    assert fetch(root, "eurosat") == 0 == fetch(root, "eurosat", "--dry-run")
    assert len(server.asked) == len(asked) == 1
    assert "eurosat: in place, nothing to do" in capsys.readouterr().out


def test_only_what_is_missing(server, tmp_path, monkeypatch):
    asked = eurosat(monkeypatch, server, tmp_path)
    (tmp_path / "eurosat").mkdir()
    (tmp_path / "miniature" / "eurosat" / "2750").rename(tmp_path / "eurosat" / "EuroSAT_RGB")  # as another archive has
    assert fetch(tmp_path, "eurosat", "--keep-archives") == 0
    assert not server.asked and len(asked) == 1
    assert "archives/eurosat/split_zhou_EuroSAT.json" in names(tmp_path)


def test_archives_are_kept_where_that_is_asked_for(server, tmp_path, monkeypatch):
    eurosat(monkeypatch, server, tmp_path)
    assert fetch(tmp_path, "eurosat", "--keep-archives") == 0
    kept = ["eurosat.lock", "eurosat/EuroSAT.zip", "eurosat/split_zhou_EuroSAT.json"]
    assert names(tmp_path / "archives") == kept
    for left in (tmp_path / "eurosat").iterdir():
        left.rename(tmp_path / f"old{left.name}")
    assert fetch(tmp_path, "eurosat") == 0
    assert len(server.asked) == 1 and names(tmp_path / "archives") == kept  # those were there before this run


@pytest.mark.parametrize("fault", ["no network", "404", "disk full", "wrong checksum", "bad archive"])
def test_one_fails_and_the_other_goes_on(server, tmp_path, monkeypatch, capsys, fault):
    eurosat(monkeypatch, server, tmp_path)
    url = server.url("nothing")
    if fault == "no network":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
    elif fault != "404":
        url = server.url("f")
    bad = source(url, file="dtd.tar.gz", moves=(("dtd/images", "dtd/images"),))
    if fault == "wrong checksum":
        bad = bad._replace(checksum="md5:" + "0" * 32)
    elif fault == "disk full":
        write = downloading._write

        def full(response, part, have, total):
            if part.name == "dtd.tar.gz.part":
                raise OSError(28, "No space left on device")
            return write(response, part, have, total)

        monkeypatch.setattr(downloading, "_write", full)
    monkeypatch.setitem(sources.SOURCES, "dtd", (bad,))
    root = tmp_path / "root"
    assert fetch(root, "dtd,eurosat") == 1
    out, err = capsys.readouterr()
    expected = {
        "no network": "refused", "404": "HTTP Error 404", "disk full": "No space left on device",
        "wrong checksum": "not the published file", "bad archive": "neither a tar nor a zip",
    }  # fmt: skip
    assert expected[fault] in err and url in err and bad.expected() in err
    assert f"2. Put it at {root}/archives/dtd/dtd.tar.gz" in err and "3. Run again: python -m dho_plugin data" in err
    assert "in place: eurosat; not: dtd" in out
    assert not (root / "dtd" / "images").exists()
    assert not list(root.rglob(".unpack*"))


def test_a_broken_archive_without_a_checksum_is_got_anew(tmp_path, monkeypatch, capsys):
    ucf = sources.SOURCES["ucf101"][0]
    monkeypatch.setitem(sources.SOURCES, "ucf101", (ucf,))
    asked = fake_gdown(monkeypatch, {ucf.url.removeprefix("drive:"): b"PK\3\4 cut"})
    assert fetch(tmp_path, "ucf101") == 1 == fetch(tmp_path, "ucf101")
    assert len(asked) == 2 and "midframes.zip is neither a tar nor a zip archive" in capsys.readouterr().err


def test_an_archive_got_by_hand(tmp_path, capsys, monkeypatch):
    layouts.write(tmp_path / "miniature", "StanfordCars")
    parts = []
    for half in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{half}.zip", "w") as archive:
            for path in (tmp_path / "miniature" / "stanford_cars" / f"cars_{half}").iterdir():
                archive.write(path, f"cars_{half}/{path.name}")
        place = f"stanford_cars/cars_{half}"
        content = (tmp_path / f"{half}.zip").read_bytes()
        parts.append(source("", content, file=f"cars_{half}.tgz", moves=((f"cars_{half}", place),), elsewhere="Ask."))
    monkeypatch.setitem(sources.SOURCES, "stanford_cars", tuple(parts))
    root = tmp_path / "root"
    assert fetch(root, "stanford_cars") == 1
    err = capsys.readouterr().err
    assert "cars_test.tgz cannot be downloaded. Ask." in err
    assert f"1. Get cars_train.tgz ({parts[0].expected()})\n  2. Put it at {root}/archives/stanford_cars/cars_tr" in err
    for half in ("train", "test"):
        target = root / "archives" / "stanford_cars" / f"cars_{half}.tgz"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((tmp_path / f"{half}.zip").read_bytes())
    assert fetch(root, "stanford_cars") == 0
    assert len(list((root / "stanford_cars" / "cars_train").iterdir())) == 44
    assert target.is_file()  # what a user put there is not ours to delete


def test_imagenet_is_by_hand_and_its_steps_say_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sources.SOURCES, "imagenet", sources.SOURCES["imagenet"][:1])
    assert fetch(tmp_path, "imagenet") == 1
    err = capsys.readouterr().err
    assert "147,897,477,120 bytes, md5 1d675b47d978889d74fa0da5fadfb00e" in err and f"{tmp_path}/imagenet/images" in err
    for half in ("train", "val"):
        (tmp_path / "imagenet" / "images" / half / "n01440764").mkdir(parents=True)
    assert fetch(tmp_path, "imagenet") == 0


def test_class_names_are_copied_from_imagenet(tmp_path, monkeypatch):
    for name in ("imagenet_a", "imagenet_r"):
        monkeypatch.setitem(sources.SOURCES, name, sources.SOURCES[name][1:])
    text = "".join(f"n{i:08d} class {i}\n" for i in range(1000)).encode()
    asked = fake_gdown(monkeypatch, {sources.SOURCES["imagenet"][1].url.removeprefix("drive:"): text})
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_bytes(text[:50])  # broken, so not taken
    assert fetch(tmp_path, "imagenet_a,imagenet_r") == 0
    assert len(asked) == 1
    assert (tmp_path / "imagenet-rendition" / "classnames.txt").read_bytes() == text


def test_two_at_once(server, tmp_path, monkeypatch, capsys):
    asked = eurosat(monkeypatch, server, tmp_path)
    folder = tmp_path / "archives" / "eurosat"
    folder.mkdir(parents=True)
    with fetching._locked(folder):
        assert fetch(tmp_path, "eurosat") == 1
    assert f"another process fetches it: {folder}.lock is locked" in capsys.readouterr().err
    assert not server.asked and not asked
    assert fetch(tmp_path, "eurosat") == 0


def test_what_a_killed_unpacking_left_is_removed(server, tmp_path, monkeypatch):
    eurosat(monkeypatch, server, tmp_path)
    left = tmp_path / "eurosat" / ".unpack-abc" / "outer"
    left.mkdir(parents=True)
    assert fetch(tmp_path, "eurosat") == 0
    assert sorted(path.name for path in (tmp_path / "eurosat").iterdir()) == ["2750", "split_zhou_EuroSAT.json"]


def test_too_small_a_disk(server, tmp_path, monkeypatch, capsys):
    eurosat(monkeypatch, server, tmp_path)
    size = sources.SOURCES["eurosat"][0].bytes
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage(0, 0, 2 * size - 1))
    assert fetch(tmp_path, "eurosat") == 1
    assert f"not started: downloads and what they hold need about {2 * size:,} bytes" in capsys.readouterr().err
    assert not server.asked
    (tmp_path / "archives" / "eurosat").mkdir(parents=True)
    (tmp_path / "archives" / "eurosat" / "EuroSAT.zip.part").write_bytes(server.files["EuroSAT.zip"][:1])
    assert fetch(tmp_path, "eurosat") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fetch", "--dataset", "eurosta", "--root", "R"], r"--dataset 'eurosta': .* Did you mean 'eurosat'\?"),
        (["fetch", "--dataset", ",", "--root", "R"], "--dataset ',': expected all"),
        (["fetch", "--dataset", "dtd", "--root", __file__], "is not a folder"),
        (["fetsh"], r"unknown subcommand 'fetsh' of data: .* Did you mean 'fetch'\?"),
    ],
)
def test_mistakes(options, message, capsys):
    with pytest.raises(UsageError, match=message):
        main(options)
    assert command(["data", *options]) == 2


def test_the_commands_are_listed(capsys):
    assert main(["-h"]) == 0 and main([]) == 2
    assert {"doctor", "fetch"} <= set(capsys.readouterr().out.split()) and "data" in COMMANDS
