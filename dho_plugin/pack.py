"""`python -m dho_plugin pack`: images shrunk once, in the same layout, for runs that decoding limits.

A shorter side of 480 loses no view its pixels where a teacher looks at 336: the smallest box of a random resized crop
has half the area and an aspect of 3/4, so its shorter side is 0.71 of that of a 4:3 image, 339 pixels (0.61 of a square
one's). For 224 alone 320 do (226). Boxes are drawn on the shrunk images: a pack is a deviation, and runs name it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ._version import __version__
from .data.fetch import ARCHIVES
from .data.sources import READERS
from .errors import UsageError, check_choice
from .packed import RECORD, read_record
from .predicting import SUFFIXES, printable, progress
from .sealed import write_whole
from .views import UnreadableImage, fault, read_image

# Written as they were read; what is saved as a palette or an animation (GIF) is copied.
FORMATS = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "BMP": "BMP", "TIFF": "TIFF", "WEBP": "WEBP", "PPM": "PPM"}
SAMPLE = 64  # images that are shrunk for the estimate
AT_A_TIME = 16  # files that a process is given
GIB = 2**30
SAME_TIME = 2 * 10**9  # nanoseconds; some file systems keep times no finer


class Job(NamedTuple):
    """A file to be packed. shorter: side in pixels. quality: of JPEG and WebP, from 1 to 100."""

    source: str
    target: str
    shorter: int
    quality: int


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m dho_plugin pack",
        description="Write shrunk copies of all images below a folder, and all its other files as they are, in the "
        "same layout: --root PACKED then trains on them. Smaller images are copied byte for byte. The same command "
        "again goes on where it stopped; one at a time. Hidden files, metadata of images (EXIF, colour profiles) and "
        f"the root's {ARCHIVES}/ are left out.",
    )
    p.add_argument("--root", required=True, metavar="DATA", help="folder that holds the datasets, or one's own images")
    p.add_argument("--output", required=True, metavar="PACKED", help="folder for the copies; made if it is missing")
    p.add_argument("--dataset", default="", metavar="NAME", help=f"only this one, of: {', '.join(READERS)}")
    p.add_argument("--shorter", type=int, default=480, metavar="PIXELS", help="shorter side (480; 320 for 224 alone)")
    p.add_argument("--quality", type=int, default=92, help="of JPEG and WebP (default 92)")
    p.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Pack what is not packed yet.

    Raises:
        UsageError: see check, folders_of and estimate; the disk is full.
    """
    args = parser().parse_args(argv)
    root, output = check(args)
    folders = folders_of(root, args.dataset)
    at = output / (folders[0].relative_to(root) if args.dataset else "")
    said = {"root": str(root), "dataset": args.dataset, "shorter": args.shorter, "quality": args.quality}
    check_output(output, said)
    files = list(dict.fromkeys(file for folder in folders for file in files_below(folder, output)))
    jobs = [Job(file, str(output / Path(file).relative_to(root)), args.shorter, args.quality) for file in files]
    missing = [job for job in jobs if not is_done(job)]
    print(f"{len(files):,} files, {len(files) - len(missing):,} of them packed already")
    estimate(missing, output)
    try:
        at.mkdir(parents=True, exist_ok=True)
        _write(at, {**said, "complete": False})
        found = list(progress(_packed(missing, args.workers), len(missing)))
    except OSError as error:
        raise UsageError(f"{error}: what is written stays, and the same command goes on from there") from error
    bad = sorted(one["file"] for one in found if one["state"] == "unreadable")
    _write(at, {**said, "complete": True, "files": len(files), "unreadable": bad})
    for file in bad:
        print(f"unreadable, copied as it is: {printable(file)}")
    counts = Counter(one["state"] for one in found)
    before, after = (sum(one[key] for one in found) / GIB for key in ("before", "after"))
    print(f"{counts['shrunk']:,} shrunk, {counts['copied']:,} copied: {before:.2f} GiB have become {after:.2f}")
    print(f"Train on them with --root {printable(str(output))}")
    return 0


def check(args: argparse.Namespace) -> tuple[Path, Path]:
    """Root and output, absolute.

    Raises:
        UsageError: a value out of range, no such root, an output inside the root or around it.
    """
    if args.dataset:
        check_choice("--dataset", args.dataset, READERS)
    for flag, low, high in (("shorter", 32, 10_000), ("quality", 1, 100), ("workers", 1, 1_000)):
        if not low <= getattr(args, flag) <= high:
            raise UsageError(f"--{flag} {getattr(args, flag)}: expected a number from {low} to {high}")
    root, output = (Path(given).expanduser().resolve() for given in (args.root, args.output))
    if not root.is_dir():
        raise UsageError(f"--root {printable(args.root)}: no such folder")
    if root == output or root in output.parents or output in root.parents:
        raise UsageError(f"--output {printable(args.output)} and --root {printable(args.root)}: one lies in the other")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {printable(args.output)} is a file")
    return root, output


def folders_of(root: Path, dataset: str) -> list[Path]:
    """The folders to be packed, a dataset's own first.

    Raises:
        UsageError: the dataset is not there.
    """
    if not dataset:
        return [root]
    place = READERS[dataset].place(root)
    if not place.found:
        raise UsageError(f"no images of {dataset} below {printable(str(root))}: `data doctor` says what it looks for")
    apart = place.lists != place.base and place.base not in place.lists.parents
    return [place.base, place.lists] if apart else [place.base]


def check_output(output: Path, said: dict[str, Any]) -> None:
    """Refuse a folder that is another pack, or none and not empty."""
    if not output.is_dir():
        return
    places = [file.parent for depth in range(4) for file in output.glob(f"{'*/' * depth}{RECORD}")]
    records = [(folder, record) for folder in places if (record := read_record(folder)) is not None]
    if not records and any(output.iterdir()):
        raise UsageError(f"--output {printable(str(output))} is not empty and no pack: give another folder")
    for folder, record in records:
        differ = [
            f"{key} {record.get(key)!r}" for key in ("root", "shorter", "quality") if record.get(key) != said[key]
        ]
        if differ:
            raise UsageError(printable(f"{folder} is a pack with {', '.join(differ)}: give another --output"))


def files_below(folder: Path, output: Path) -> Iterator[str]:
    """All files but hidden ones and downloaded archives; links to folders are followed, each folder once."""
    seen = {str(output)}
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        above = Path(where) == folder
        folders[:] = sorted(name for name in folders if name[0] != "." and not (above and name == ARCHIVES))
        yield from (os.path.join(where, name) for name in sorted(names) if name[0] != "." and name != RECORD)


def is_done(job: Job) -> bool:
    """Whether the copy is there and the original has not changed since."""
    try:
        return abs(os.stat(job.target).st_mtime_ns - os.stat(job.source).st_mtime_ns) < SAME_TIME
    except FileNotFoundError:
        return False


def estimate(jobs: Sequence[Job], output: Path) -> None:
    """Say how much room the copies will take, by shrinking a few images.

    Raises:
        UsageError: the disk has less.
    """
    images = [job for job in jobs if is_image(job)]
    sizes = {job.source: os.path.getsize(job.source) for job in jobs}
    few = images[:: max(1, len(images) // SAMPLE)][:SAMPLE]
    before = sum(sizes[job.source] for job in few)
    after = sum(len(_shrunk_or_none(job) or b"") or sizes[job.source] for job in few)
    total = sum(sizes[job.source] for job in images)
    needed = int(sum(sizes.values()) - total + total * after / max(1, before))
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    print(
        f"{len(images):,} images and {len(jobs) - len(images):,} other files of {sum(sizes.values()) / GIB:.2f} GiB: "
        f"about {needed / GIB:.2f} GiB packed, {free / GIB:.1f} GiB are free"
    )
    if needed > free:
        raise UsageError(f"not started: about {needed:,} bytes are needed, {printable(str(there))} has {free:,} free")


def is_image(job: Job) -> bool:
    """By the file's suffix."""
    return job.source.lower().endswith(SUFFIXES)


def shrunk(path: str, shorter: int, quality: int) -> bytes | None:
    """An image file with a shorter side of `shorter` pixels, as RGB or grey; None where it has no more, or by FORMATS.

    Raises:
        UnreadableImage: see views.read_image; of an image that stays as it is only its first bytes are looked at.
    """
    wrong = fault(path, decode=False)
    if wrong:
        raise UnreadableImage(wrong)
    with Image.open(path) as opened:
        size, kind, grey = opened.size, opened.format, opened.mode == "L"
    if min(size) <= shorter or kind not in FORMATS:
        return None
    image = read_image(path)
    wanted = [max(shorter, round(side * shorter / min(size))) for side in size]
    small = (image.convert("L") if grey else image).resize((wanted[0], wanted[1]), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, FORMATS[kind], **({"quality": quality} if kind in ("JPEG", "MPO", "WEBP") else {}))
    return file.getvalue()


def _shrunk_or_none(job: Job) -> bytes | None:
    try:
        return shrunk(job.source, job.shorter, job.quality)
    except UnreadableImage:
        return None


def pack_file(job: Job) -> dict[str, Any]:
    """Write one copy, as a whole or not at all.

    Returns:
        "file"; "state": shrunk, copied or unreadable; bytes "before" and "after".
    """
    content, state, target = None, "copied", Path(job.target)
    if is_image(job):
        try:
            content = shrunk(job.source, job.shorter, job.quality)
        except UnreadableImage:
            state = "unreadable"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Hidden from every reader, and found again by the run that goes on.
    name = hashlib.blake2b(target.name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    temporary = target.with_name(f".packing-{name}")
    if content is None:
        shutil.copyfile(job.source, temporary)
    else:
        temporary.write_bytes(content)
        state = "shrunk"
    status = os.stat(job.source)
    if state != "unreadable":  # that one keeps a time of its own, so that a later run looks at it again
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(temporary, target)
    return {"file": job.source, "state": state, "before": status.st_size, "after": target.stat().st_size}


def _packed(jobs: Sequence[Job], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1 or len(jobs) <= AT_A_TIME:
        yield from map(pack_file, jobs)
        return
    with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
        try:
            yield from pool.map(pack_file, jobs, chunksize=AT_A_TIME)
        finally:  # of an interrupted run, which is not to go on in the background
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when the command is killed, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # as this runs in a worker

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write(folder: Path, record: dict[str, Any]) -> None:
    write_whole(folder / RECORD, json.dumps({**record, "dho_plugin": __version__}, indent=1) + "\n")
