"""python -m dho_plugin data fetch: download datasets, check them and put them into CoOp's layouts."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..errors import UsageError, did_you_mean
from ..predicting import printable
from . import sources
from .download import check, check_form, download
from .sources import Source
from .unpack import TEMPORARY, occupied, unpack

ARCHIVES = "archives"  # below the root; downloads lie in <root>/archives/<dataset> until they are in place


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m dho_plugin data fetch",
        description="Download datasets, check size and checksum, and put them into CoOp's layouts. What cannot be "
        "downloaded is printed as steps to do by hand; an archive got by hand is then checked and unpacked. The same "
        "command again goes on where it stopped. Exit status: 0 if all that was asked for is there, else 1.",
    )
    p.add_argument("--dataset", required=True, metavar="D[,D...]", help=f"all, or of: {', '.join(sources.SOURCES)}")
    p.add_argument("--root", required=True, metavar="R", help="folder that holds the datasets; made if it is missing")
    p.add_argument(
        "--dry-run", action="store_true", help="say what would be downloaded and done by hand; change nothing"
    )
    p.add_argument("--keep-archives", action="store_true", help=f"leave what was downloaded in R/{ARCHIVES}")
    return p


def main(argv: list[str]) -> int:
    """Fetch what is missing; 1 if something still is.

    Raises:
        UsageError: an unknown dataset, or a root that is a file.
    """
    args = parser().parse_args(argv)
    names = _datasets(args.dataset)
    root = Path(args.root).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise UsageError(f"--root {printable(str(root))} is not a folder")
    _plan(names, root, args.dry_run)
    for name in names if not args.dry_run else ():
        fetch(name, root, args.keep_archives)
    done = [name for name in names if _is_there(name, root)]
    incomplete = [name for name in names if name not in done]
    print(f"in place: {', '.join(done) or 'none'}" + (f"; not: {', '.join(incomplete)}" if incomplete else ""))
    if done:
        print(
            f"Check every file with: python -m dho_plugin data doctor --dataset {','.join(done)} --root {_quoted(root)}"
        )
    return 1 if incomplete else 0


def fetch(name: str, root: Path, keep: bool) -> None:
    """Fetch the missing files of one dataset; what goes wrong is printed, each with the steps to do by hand."""
    folder = root / ARCHIVES / name
    try:
        if not _missing(name, root):
            return
        _check_space(name, root)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            folder.mkdir(exist_ok=True)
            _sweep(name, root)
            for source in _missing(name, root):
                try:
                    _place(source, root, folder, keep)
                    print(f"{name}: {' and '.join(source.places)} in place", flush=True)
                except (UsageError, OSError) as error:
                    print(f"{name}: {printable(str(error))}", file=sys.stderr)
                    _print_steps(name, source, root, sys.stderr)
            if not keep and not any(folder.iterdir()):
                folder.rmdir()
    except (UsageError, OSError) as error:
        print(f"{name}: {printable(str(error))}", file=sys.stderr)


def _datasets(given: str) -> list[str]:
    names = list(sources.SOURCES) if given == "all" else [name.strip() for name in given.split(",") if name.strip()]
    for name in names or [given]:
        if name not in sources.SOURCES:
            raise UsageError(
                f"--dataset {name!r}: expected all, or of {list(sources.SOURCES)}.{did_you_mean(name, sources.SOURCES)}"
            )
    return list(dict.fromkeys(names))


def _missing(name: str, root: Path) -> list[Source]:
    """The files that must still be had.

    Raises:
        UsageError: the images seem to lie at several unusual places.
    """
    found = sources.READERS[name].place(root)

    def there(path: Path) -> bool:
        near = path.is_relative_to(found.usual) and occupied(found.images / path.relative_to(found.usual))
        return occupied(path) or near or (found.lists / path.name).is_file()

    return [s for s in sources.SOURCES[name] if not all(there(root / place) for place in s.places)]


def _is_there(name: str, root: Path) -> bool:
    try:
        return not _missing(name, root)
    except UsageError:
        return False


def _place(source: Source, root: Path, folder: Path, keep: bool) -> None:
    """Get one file and put what it gives in place."""
    if source.steps:
        raise UsageError(f"{source.file} cannot be downloaded without an account.")
    there = (folder / source.file).exists()
    path = _twin(source, root) or download(source, folder)
    moves = [(inside, root / place) for inside, place in source.moves]
    if moves[0][0]:
        try:
            unpack(path, moves, source.inner)
        except UsageError:
            if not (source.checksum or there):  # the fault may be the download's
                path.unlink()
            raise
    else:
        place = moves[0][1]
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f"{TEMPORARY}{place.name}")
        shutil.copyfile(path, temporary)
        temporary.replace(place)
    if path.parent == folder and not (keep or there):  # one that was put there by hand stays
        path.unlink()


def _twin(source: Source, root: Path) -> Path | None:
    """The very same file where another dataset already has it."""
    if not source.url or source.moves[0][0]:
        return None
    for place in (s.places[0] for listed in sources.SOURCES.values() for s in listed if s.url == source.url):
        if (root / place).is_file():
            try:
                check(source, root / place)
                check_form(source, root / place)
                return root / place
            except UsageError:
                continue
    return None


def _sweep(name: str, root: Path) -> None:
    """Remove what a killed process left of its unpacking."""
    for above in {(root / place).parent for source in sources.SOURCES[name] for place in source.places}:
        for left in above.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; the system lets go of it when this one ends, however it ends."""
    with folder.with_name(f"{folder.name}.lock").open("ab") as file:  # stays: to remove it would let two hold it
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another process fetches it: {file.name} is locked ({error}); wait for it, then run the command again"
            ) from error
        yield


def _check_space(name: str, root: Path) -> None:
    """Archives and their contents, about as large, lie side by side for a while."""
    folder, needed = root / ARCHIVES / name, 0
    for source in _missing(name, root):
        lying = [path.stat().st_size for path in folder.glob(f"{source.file}*")]
        if source.url or lying:
            needed += max(0, 2 * (source.bytes or 0) - sum(lying))
    if needed > _free(root):
        raise UsageError(
            f"not started: downloads and what they hold need about {needed:,} bytes, {root} has {_free(root):,} free"
        )


def _free(root: Path) -> int:
    return shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.is_dir())).free


def _plan(names: list[str], root: Path, steps: bool) -> None:
    """Print what is there, what will be downloaded from where, and what must be done by hand (with `steps`, how)."""
    total = 0
    for name in names:
        try:
            missing = _missing(name, root)
        except UsageError as error:
            print(f"{name}: {error}")
            continue
        if not missing:
            print(f"{name}: in place, nothing to do. {sources.READERS[name].place(root).note()}".rstrip())
        for source in missing:
            total += (source.bytes or 0) if source.url else 0
            print(f"{name}: {source.file} ({source.expected()}) {f'from {source.link}' if source.url else 'by hand'}")
            if steps and not source.url:
                _print_steps(name, source, root, sys.stdout)
    print(f"to download: {total:,} bytes and what has no published size; {_free(root):,} bytes are free", flush=True)


def _print_steps(name: str, source: Source, root: Path, out: TextIO) -> None:
    again = f"python -m dho_plugin data fetch --dataset {name} --root {_quoted(root)}"
    steps = [step.format(root=root) for step in source.steps] or [
        f"Get {source.file} ({source.expected()})" + (f" from {source.link}" if source.url else ""),
        f"Put it at {root / ARCHIVES / name / source.file}",
    ]
    print(f"  By hand, for {' and '.join(str(root / place) for place in source.places)}:", file=out)
    for number, step in enumerate([*steps, f"Run again: {again}"], start=1):
        print(f"  {number}. {printable(step)}", file=out)
    if source.elsewhere:
        print(f"  {source.elsewhere}", file=out)


def _quoted(path: Path) -> str:
    return shlex.quote(printable(str(path)))
