"""Files that are whole or not there: kills, full disks, damage, and what other programs read of them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from types import SimpleNamespace

import children
import numpy as np
import pytest
import torch
from children import fork
from safetensors import safe_open
from safetensors.torch import load_file

from dho_plugin import sealed
from dho_plugin.embedded.checkpoints import load_checkpoint, save_checkpoint
from dho_plugin.errors import UsageError
from dho_plugin.sealed import (
    DamagedCheckpoint,
    DiskFull,
    load_tensors,
    plain,
    save_tensors,
    tensor_bytes,
    write_whole,
)

STATE = {"w": torch.arange(3000.0), "deep": [{"a": (1, None, b"x", "y")}], "lr": 0.5}
BIG = {"w": torch.ones(250_000), "epoch": 2}


def checkpoint(value: float = 1.0, epoch: int = 1, **state) -> dict:
    weights = {"weight": torch.full((300, 300), value), **state}
    return {"state_dict": weights, "epoch": epoch, "optimizer": None, "scheduler": None, "val_result": None}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# Killed while writing


class Stop:
    """Calls `reached` in place of the n-th call of a function."""

    def __init__(self, function, calls: int, reached) -> None:
        self.function, self.left, self.reached = function, calls, reached

    def __call__(self, *args):
        self.left -= 1
        if not self.left:
            self.reached()
        return self.function(*args)


def kill_in_saving(folder: Path, where: str, calls: int) -> None:
    """Save a checkpoint of epoch 2 in a child that dies in the n-th call of a function."""

    def work(reached) -> None:
        if where == "write":
            stop = Stop(sealed._Hashed.write, calls, reached)
            sealed._Hashed.write = lambda self, content: stop(self, content)
        else:
            setattr(os, where, Stop(getattr(os, where), calls, reached))
        save_checkpoint(checkpoint(2.0, 2), folder, is_best=True)

    children.killed(work)


@fork
@pytest.mark.parametrize(
    ("where", "calls", "pointer"),
    [
        ("write", 20, 1),  # within the tensors of model.pth.tar-2
        ("fsync", 1, 1),
        ("replace", 2, 1),  # model.pth.tar-2 is complete under its temporary name
        ("fsync", 4, 1),  # of the folder, after that one has its name
        ("replace", 3, 1),  # the pointer
        ("replace", 5, 2),  # model-best.pth.tar
    ],
)
def test_a_kill_while_saving_leaves_whole_files(tmp_path, where, calls, pointer):
    save_checkpoint(checkpoint(), tmp_path, is_best=True)
    kill_in_saving(tmp_path, where, calls)
    left = [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert len(left) <= 1 and (left or where == "fsync")
    assert (tmp_path / "checkpoint").read_text() == f"model.pth.tar-{pointer}\n"
    for file in tmp_path.glob("model*"):
        if file.suffix == ".safetensors":
            load_file(file)
        elif file.name not in left:
            value = 2.0 if file.name == "model.pth.tar-2" else 1.0
            assert load_checkpoint(file)["state_dict"]["weight"].unique().tolist() == [value]
    save_checkpoint(checkpoint(2.0, 2), tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


@fork
def test_temporaries_of_the_living_and_what_is_not_ours_stay(tmp_path):
    me = f"{sealed._HOST}-{os.getpid()}"
    kept = [f"a.{me}.tmp", "b.tmp", "c.5.tmp", "d.elsewhere-999999999.tmp", f"e.{sealed._HOST}-1.tmp"]
    gone = [f"f.{sealed._HOST}-999999999.tmp", "g.elsewhere-1.tmp"]
    for name in kept + gone:
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / "g.elsewhere-1.tmp", (0, 0))  # of a machine whose processes are unknown, and old
    write_whole(tmp_path / "file", "text")
    assert names(tmp_path) == sorted([*kept, "file"])


def test_content_is_on_the_disk_before_it_has_its_name_and_its_name_after(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def record_sync(file: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{file}")) if sys.platform == "linux" else Path()
        done.append(("fsync", path.name.partition(".")[0], path.stat().st_size if path.is_file() else 0))
        fsync(file)

    def record_replace(source: Path, target: Path) -> None:
        done.append(("replace", target.name, source.stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    save_tensors(tmp_path / "a", STATE)
    size = (tmp_path / "a").stat().st_size
    folder = tmp_path.name.partition(".")[0]
    assert done[1] == ("replace", "a", size)
    if sys.platform == "linux":
        assert done == [("fsync", "a", size), ("replace", "a", size), ("fsync", folder, 0)]


def test_a_disk_that_cannot_sync_folders_will_do_and_one_that_fails_will_not(tmp_path, monkeypatch):
    def fail(code: int) -> None:
        monkeypatch.setattr(os, "fsync", lambda file: file_failed(code) if not os.path.isdir(name(file)) else no(code))

    def name(file: int) -> str:
        return f"/proc/self/fd/{file}"

    def file_failed(code: int) -> None:
        if code == errno.EIO:
            raise OSError(code, "of the file")

    def no(code: int) -> None:
        raise OSError(code, "of the folder")

    if sys.platform != "linux":
        pytest.skip("needs /proc")
    write_whole(tmp_path / "a", "old")
    fail(errno.EINVAL)
    write_whole(tmp_path / "a", "new")
    fail(errno.EIO)
    with pytest.raises(OSError, match="of the file"):
        write_whole(tmp_path / "a", "newer")
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == ["a"]


@fork
def test_two_that_save_one_file_leave_a_whole_one(tmp_path):
    save_tensors(tmp_path / "a", BIG)
    whole = (tmp_path / "a").read_bytes()
    savers = [children.child(lambda: [save_tensors(tmp_path / "a", BIG) for _ in range(20)]) for _ in range(2)]
    for saver in savers:
        saver.start()
    while any(saver.is_alive() for saver in savers):
        assert (tmp_path / "a").read_bytes() == whole
    assert [saver.exitcode for saver in savers] == [0, 0]
    assert names(tmp_path) == ["a"]


# Full disks


@fork
@pytest.mark.parametrize("limit", [4096, 300_000])
def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path, limit):
    """Both files of a checkpoint, and the checksum that would stand behind the limit."""
    save_checkpoint(checkpoint(), tmp_path)
    save_tensors(tmp_path / "state", STATE)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for work in (
        lambda: save_checkpoint(checkpoint(2.0), tmp_path),
        lambda: save_tensors(tmp_path / "state", BIG),
        lambda: write_whole(tmp_path / "checkpoint", "x" * 400_000),
    ):
        error = children.error_of(work, limit)
        assert isinstance(error, DiskFull) and isinstance(error, UsageError)
        assert os.strerror(errno.EFBIG) in str(error) and "the file that is there is kept" in str(error)
    assert "checkpoint" in str(error) and "needs about 400,000 bytes, and " in str(error)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    end = (tmp_path / "state").stat().st_size - sealed.SEAL_BYTES
    assert isinstance(children.error_of(lambda: save_tensors(tmp_path / "state", STATE), end), DiskFull)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_of_2_mib(tmp_path, monkeypatch):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed")
    try:
        save_tensors(tmp_path / "a", BIG)
        before = (tmp_path / "a").read_bytes()
        with pytest.raises(DiskFull, match=r"/a .*needs about 4,000,000 bytes, and 1,\d{3},\d{3} bytes are free.*kept"):
            save_tensors(tmp_path / "a", {"w": torch.ones(1_000_000)})
        give_room(monkeypatch, total=2**21, free=2**40)  # which others then use up
        for work in (lambda: save_tensors(tmp_path / "a", {"w": torch.ones(1_000_000)}), lambda: save_large(tmp_path)):
            with pytest.raises(DiskFull, match="No space left"):
                work()
        assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == before
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def give_room(monkeypatch, **bytes_: int) -> None:
    monkeypatch.setattr(sealed.shutil, "disk_usage", lambda _: SimpleNamespace(**bytes_))


def test_what_cannot_fit_is_not_begun(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")
    give_room(monkeypatch, total=10**6, free=999_999)
    with pytest.raises(
        DiskFull, match=r"/a \(No space.* needs about 1,000,000 bytes, and 999,999 bytes are free.* kept"
    ):
        save_tensors(tmp_path / "a", BIG | {"w": torch.Tensor([0.0, 1.0]).expand(9, 2)} | {"x": torch.ones(249_998)})
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]
    give_room(monkeypatch, total=0, free=0)  # of a network disk that does not know
    save_tensors(tmp_path / "a", BIG)


def save_large(folder: Path) -> None:
    save_checkpoint(checkpoint(big=torch.ones(1_000_000)), folder)


def test_an_interrupt_while_saving_stays_one(tmp_path, monkeypatch):
    def interrupt(self, content) -> int:
        self.error = KeyboardInterrupt()
        raise self.error

    monkeypatch.setattr(sealed._Hashed, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(tmp_path / "a", STATE)
    assert names(tmp_path) == []


# Damage


def test_a_changed_byte_anywhere_is_found(tmp_path):
    file = tmp_path / "model.pth.tar-3"
    save_tensors(file, STATE)
    whole = bytearray(file.read_bytes())
    assert torch.equal(load_tensors(file, seal_needed=True)["w"], STATE["w"])
    ends = len(whole) - 1 - np.arange(sealed.SEAL_BYTES + sealed.END_BYTES + 4)
    for position in [*range(0, len(whole), 701), *ends.tolist()]:
        whole[position] ^= 16
        file.write_bytes(whole)
        with pytest.raises(DamagedCheckpoint, match=r"model\.pth\.tar-3' is damaged \(sha256 \w{64}, expected .+\)"):
            load_tensors(file)
        whole[position] ^= 16


@pytest.mark.parametrize("needed", [False, True])
def test_a_cut_file_is_found(tmp_path, needed):
    file = tmp_path / "model.pth.tar-3"
    save_tensors(file, STATE)
    whole = file.read_bytes()
    for size in [0, 1, 10, 90, 200, 5000, len(whole) - 80, len(whole) - 70, len(whole) - 1]:
        zeros = [len(whole) - size, *[400] * needed]  # behind a whole archive they hide that there was a checksum
        for content in (whole[:size], *(whole[:size] + bytes(count) for count in zeros)):
            file.write_bytes(content)
            with pytest.raises(DamagedCheckpoint, match=r"model\.pth\.tar-3'"):
                load_tensors(file, seal_needed=needed)


@pytest.mark.parametrize("content", [b"<html>", bytes(5000), b"hello, world", b"PK\3\4" + bytes(200)])
def test_another_file_is_named_and_no_unsafe_loading_is_advised(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="x': cut off, damaged or not a checkpoint") as error:
        load_tensors(tmp_path / "x")
    assert "weights_only" not in str(error.value)


def test_any_torch_and_any_unzip_reads_it_and_what_others_wrote_is_read(tmp_path):
    save_tensors(tmp_path / "ours", STATE)
    torch.save(STATE, tmp_path / "theirs")
    for path in (tmp_path / "ours", str(tmp_path / "ours"), tmp_path / "theirs"):
        found = torch.load(path, weights_only=True)
        assert torch.equal(found["w"], STATE["w"]) and found["deep"] == STATE["deep"]
    assert zipfile.ZipFile(tmp_path / "ours").testzip() is None
    assert torch.equal(load_tensors(tmp_path / "theirs")["w"], STATE["w"])
    with pytest.raises(DamagedCheckpoint, match="no sha256"):
        load_tensors(tmp_path / "theirs", seal_needed=True)


def test_the_checksum_is_that_of_the_archive_without_its_comment(tmp_path):
    save_tensors(tmp_path / "a", STATE)
    comment = zipfile.ZipFile(tmp_path / "a").comment
    whole = (tmp_path / "a").read_bytes()
    plain_archive = whole[: -len(comment) - 2] + b"\0\0"
    assert comment == b"sha256:" + hashlib.sha256(plain_archive).hexdigest().encode()


# What is saved


def test_numpys_scalars_become_pythons_and_containers_keep_their_kind(tmp_path):
    state = torch.nn.BatchNorm1d(2).state_dict()
    given = {
        "a": [np.float64(1.5), (np.int64(2), {np.int32(3): np.bool_(True)})],
        "s": Counter([np.int64(4)]),
        "m": state,
    }
    found = plain(given)
    assert repr(found["a"]) == "[1.5, (2, {3: True})]" and found["s"] == Counter([4])
    assert isinstance(found["m"], OrderedDict) and found["m"]._metadata == state._metadata
    save_tensors(tmp_path / "a", given)
    assert repr(load_tensors(tmp_path / "a")["a"]) == "[1.5, (2, {3: True})]"


def test_bytes_of_a_state():
    one = torch.zeros(100)
    assert tensor_bytes({"a": one, "b": [one, one[:50]], "c": (torch.zeros(10, dtype=torch.float64), 3)}) == 480


def test_the_weights_stand_alone_as_safetensors(tmp_path, capsys):
    tied = torch.randn(4, 4)
    state = {
        "module.a": tied,
        "module.tied": tied,
        "module.row": tied[1],
        "turned": tied.t(),
        "parameter": torch.nn.Parameter(torch.randn(3).to(torch.bfloat16)),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "head._extra_state": {"classes": ["å", "b"], "n": np.int64(2)},
    }
    saved = {**checkpoint(epoch=5), "state_dict": state, "val_result": np.float64(61.5)}
    save_checkpoint(saved, tmp_path / "head.pth.tar", is_best=True)
    for name in ("model-5", "model-best"):
        found = load_file(tmp_path / "head.pth.tar" / f"{name}.safetensors")
        wanted = {key.removeprefix("module."): value for key, value in state.items() if torch.is_tensor(value)}
        assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    with safe_open(tmp_path / "head.pth.tar" / "model-best.safetensors", "pt") as file:
        described = json.loads(file.metadata()["checkpoint"])
    rest = {"head._extra_state": {"classes": ["å", "b"], "n": 2}}
    assert described == {"epoch": 5, "val_result": 61.5, "other_state": rest}
    save_checkpoint(saved, tmp_path / "again")
    names_ = ("model-5.safetensors", "model.pth.tar-5")
    assert all((tmp_path / "again" / n).read_bytes() == (tmp_path / "head.pth.tar" / n).read_bytes() for n in names_)
