"""Archives that try to leave their folder, to grow without end or to stay half there; and good ones."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from dho_plugin.data import unpack as module
from dho_plugin.data.unpack import unpack
from dho_plugin.errors import UsageError

GOOD = {"top/images/a.jpg": b"a" * 3000, "top/images/b/c.jpg": b"c", "top/list.txt": b"names\n"}
DEVICES = {"character": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE}


def entry(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o4777
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content


def tar(path: Path, *entries: tuple, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content) if info.size else None)
    return path


def zip_(path: Path, files: dict[str, bytes], attributes: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename, info.external_attr, info.compress_type = name, attributes << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder in a folder of its own: what leaves the former shows in the latter."""
    root = tmp_path / "around" / "root"
    root.mkdir(parents=True)
    return root


@pytest.fixture(params=["with tarfile's filter", "without"])
def filters(request, monkeypatch):
    """An older Python has no filter of its own."""
    if request.param == "without":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)


def refused(archive: Path, root: Path, message: str) -> None:
    place = root / "set" / "images"
    with pytest.raises(UsageError, match=message):
        unpack(archive, [("top", place)])
    assert [path.relative_to(root).as_posix() for path in root.rglob("*")] == ["set"]  # and that is empty
    assert list(root.parent.iterdir()) == [root]


NAMES = [
    ("../out", r"member '../out' leads out"),
    ("top/../../out", "leads out"),
    ("top\\..\\..\\out", "leads out"),
    ("AROUND/out", "member '/.*/around/out' has an absolute name"),
    ("\\AROUND/out", "absolute"),
    ("C:\\out", "absolute"),
    ("C:out", "absolute"),
    ("top/a\nb", r"member 'top/a\\nb' has a control character"),
    ("top/a\x7fb", "control character"),
]


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_a_name_that_leads_out_of_a_tar(tmp_path, root, filters, name, message):
    refused(tar(tmp_path / "a.tar", entry("top/good"), entry(name.replace("AROUND", str(root.parent)))), root, message)


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_a_name_that_leads_out_of_a_zip(tmp_path, root, name, message):
    files = {"top/good": b"x", name.replace("AROUND", str(root.parent)): b"x"}
    refused(zip_(tmp_path / "a.zip", files), root, message)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../out", "good"])
def test_a_symbolic_link_of_a_tar(tmp_path, root, filters, target):
    entries = (entry("top/good"), entry("top/l", kind=tarfile.SYMTYPE, target=target), entry("top/l/in"))
    refused(tar(tmp_path / "a.tar", *entries), root, "member 'top/l' is a symbolic link")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_of_a_zip(tmp_path, root, kind):
    refused(
        zip_(tmp_path / "a.zip", {"top/l": b"/etc/passwd"}, kind | 0o777), root, "member 'top/l' is a symbolic link"
    )


@pytest.mark.parametrize("kind", DEVICES)
def test_a_device_of_a_tar(tmp_path, root, filters, kind):
    refused(tar(tmp_path / "a.tar", entry("top/d", kind=DEVICES[kind])), root, "member 'top/d' is .* device or a pipe")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../secret", "top/later", "top/h"])
def test_a_hard_link_to_no_earlier_file(tmp_path, root, filters, target):
    (tmp_path / "secret").write_text("secret")
    entries = (entry("top/h", kind=tarfile.LNKTYPE, target=target), entry("top/later"))
    refused(tar(tmp_path / "a.tar", *entries), root, "'top/h' is a link to .*no earlier file|LinkOutside|AbsoluteLink")


@pytest.mark.parametrize("first", ["link", "file"])
def test_a_file_and_a_link_of_one_name(tmp_path, root, filters, first):
    link, file = entry("top/l", kind=tarfile.LNKTYPE, target="top/good"), entry("./top//l")
    entries = (link, file) if first == "link" else (file, link)
    refused(tar(tmp_path / "a.tar", entry("top/good"), *entries), root, "comes twice, once as a link")


def test_a_hard_link_to_an_earlier_file_is_a_copy(tmp_path, root, filters):
    link = entry("top/l", kind=tarfile.LNKTYPE, target="top/good")
    unpack(
        tar(tmp_path / "a.tar", entry("top/good", b"once"), link, entry("top/good", b"twice")), [("top", root / "p")]
    )
    assert (root / "p" / "l").read_bytes() == b"once"
    assert (root / "p" / "good").read_bytes() == b"twice"  # a later one replaces an earlier one, as tar has it
    assert stat.S_IMODE((root / "p" / "good").stat().st_mode) & 0o7111 == 0  # nor set-uid nor executable


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_a_bomb(tmp_path, root, monkeypatch, form):
    monkeypatch.setattr(module, "SMALL", 1000)
    content = bytes(200_000)
    if form == "tar":
        archive = tar(tmp_path / "a.tar.gz", entry("top/a", b"x"), entry("top/zeros", content), mode="w:gz")
    else:
        archive = zip_(tmp_path / "a.zip", {"top/a": b"x", "top/zeros": content})
    written = []
    monkeypatch.setattr(module._Extraction, "write", lambda self, stream, path: written.append(str(path)))
    refused(archive, root, r"member 'top/zeros' brings it to 200,001 bytes .* this is a bomb")
    assert written == ["top/a"]  # it is refused before it is written
    monkeypatch.undo()
    unpack(archive, [("top", root / "p")])  # a small one may
    monkeypatch.setattr(module, "MOST", 200_000)
    refused_whole = pytest.raises(UsageError, match="of at most 200,000 and")
    with refused_whole:
        unpack(archive, [("top", root / "q")])


def test_too_many_members(tmp_path, root, monkeypatch):
    monkeypatch.setattr(module, "MOST_MEMBERS", 2)
    refused(zip_(tmp_path / "a.zip", {f"top/{i}": b"" for i in range(3)}), root, "in 3 members")


def test_a_zip_that_lies_about_a_size(tmp_path, root):
    archive = zip_(tmp_path / "a.zip", {"top/zeros": bytes(5_000_000)})
    size = (5_000_000).to_bytes(4, "little")
    assert archive.read_bytes().count(size) == 2
    archive.write_bytes(archive.read_bytes().replace(size, (10).to_bytes(4, "little")))
    refused(archive, root, "broken at member 'top/zeros' .BadZipFile")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.zip"])
def test_good_archives_and_cut_ones(tmp_path, root, name):
    files = {path: os.urandom(5000) + content for path, content in GOOD.items()}
    if name == "a.zip":
        archive = zip_(tmp_path / name, files)
    else:
        mode = "w:" + name.partition(".tar")[2].strip(".")
        archive = tar(tmp_path / name, *(entry(path, content) for path, content in files.items()), mode=mode)
    moves = [("top/images", root / "set" / "images"), ("top/list.txt", root / "set" / "list.txt")]
    unpack(archive, moves)
    found = {path.relative_to(root / "set").as_posix(): path for path in (root / "set").rglob("*") if path.is_file()}
    assert {f"top/{name}": path.read_bytes() for name, path in found.items()} == files
    archive.write_bytes(archive.read_bytes()[:9000])
    with pytest.raises(UsageError, match=r"a\.\S+ (is broken at member|is neither a tar nor a zip)"):
        unpack(archive, [("top/images", root / "other" / "images")])
    assert not any((root / "other").iterdir())


def test_an_archive_in_an_archive(tmp_path, root):
    inner = tar(tmp_path / "inner.tar.gz", entry("101/a.jpg", b"picture"), mode="w:gz")
    outer = zip_(tmp_path / "outer.zip", {"caltech/inner.tar.gz": inner.read_bytes(), "caltech/101/other": b""})
    unpack(outer, [("101", root / "p")], inner="caltech/inner.tar.gz")
    assert [path.name for path in (root / "p").iterdir()] == ["a.jpg"]
    with pytest.raises(UsageError, match=r"outer.zip has no caltech/no.zip; at its top are \['caltech'\]"):
        unpack(outer, [("101", root / "q")], inner="caltech/no.zip")


def test_what_is_there_is_left_alone(tmp_path, root):
    (root / "images").mkdir()
    (root / "images" / "mine").touch()
    (root / "empty").mkdir()
    files = {"top/images/a": b"", "top/empty/b": b"", "top/list": b""}
    moves = [(f"top/{name}", root / name) for name in ("images", "empty", "list")]
    unpack(zip_(tmp_path / "a.zip", files), moves)
    assert {path.relative_to(root).as_posix() for path in root.rglob("*")} == {
        "images", "images/mine", "empty", "empty/b", "list",
    }  # fmt: skip


def test_nothing_is_moved_unless_all_is_there(tmp_path, root):
    with pytest.raises(UsageError, match="has no top/list"):
        unpack(zip_(tmp_path / "a.zip", {"top/images/a": b""}), [("top/images", root / "i"), ("top/list", root / "l")])
    assert not any(root.iterdir())


def test_no_archive_and_a_disk_that_fails(tmp_path, root, monkeypatch):
    (tmp_path / "page.zip").write_text("<html>")
    refused(tmp_path / "page.zip", root, r"page.zip is neither a tar nor a zip archive")
    archive = zip_(tmp_path / "a.zip", {"top/a": b"x"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfileobj", full)
    refused(archive, root, r"a.zip could not be unpacked into .*: \[Errno 28\] No space left on device")
