"""The protocol of a run, in manifest.json of its output folder: what it learned from, how, and what came out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ._version import __version__
from .host import HOST
from .leaks import overlap
from .runs import is_run

MANIFEST = "manifest.json"
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy")


def begin(
    cfg: Any, dataset: Any, batches: Any, *, teacher: Any = None, teacher_name: str = "", seed: int, resumed: bool
) -> bool:
    """Write the manifest of a run that starts or goes on.

    Args:
        dataset: the run's Dassl dataset. batches: its StepBatches. teacher: the loaded teacher, None for none.
        seed: of order and views. resumed: the run goes on from a checkpoint; its start stays what it was.

    Returns:
        Whether the run is transductive: test images are in the unlabelled pool, or in that of a run it starts from.
    """
    folder, root = Path(cfg.OUTPUT_DIR), cfg.DATASET.ROOT
    pool = _unlabeled(batches)
    taught = teacher_part(teacher_name, teacher) if teacher is not None else None
    transductive = _seen_test(cfg, dataset, pool) or bool(taught and taught.get("transductive"))
    before = read(folder) if resumed else {}
    now = {"time": _now(), "command": sys.argv}
    write(
        folder,
        {
            "labeled": labeled_part(dataset.train_x, root),
            "unlabeled": images_part(((path, -1) for path in pool), root),
            "validation": validation_part(dataset, root),
            "test": labeled_part(dataset.test or [], root),
            "transductive": transductive,
            "interpolation": None,
            "teacher": taught,
            "student": {
                "name": cfg.MODEL.BACKBONE.NAME,
                "weights_sha256": file_digest(cfg.MODEL.BACKBONE.NAME),
            },
            "view_seed": seed,
            "host": HOST,
            "versions": versions(),
            "started": before.get("started", now),
            "resumed": [*before.get("resumed", []), now] if before else [],
            "finished": None,
            "skipped": [],
            "results": None,
        },
    )
    return transductive


def finish(folder: Path, **parts: Any) -> None:
    """Add to a run's manifest what is known once it is over, and when that was."""
    write(folder, {**read(folder), **parts, "finished": _now()})


def read(folder: Path) -> dict[str, Any]:
    """A run's manifest; empty if it left none."""
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write it as a whole or not at all."""
    temporary = folder / f"{MANIFEST}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / MANIFEST)
    finally:
        temporary.unlink(missing_ok=True)


def is_transductive(folder: str | Path) -> bool:
    """Whether a run, by its manifest, has learned from test images without their labels."""
    return bool(str(folder)) and bool(read(Path(folder).expanduser()).get("transductive"))


def named(row: Mapping[str, float], words: Sequence[str]) -> dict[str, float]:
    """A row of results whose columns carry the words that nobody may overlook: "test (oracle, transductive)"."""
    return {f"{column} ({', '.join(words)})" if words else column: value for column, value in row.items()}


# Parts


def labeled_part(items: Sequence[Any], root: str) -> dict[str, Any]:
    """Number and hash of labelled images (Dassl items)."""
    return images_part(((item.impath, item.label) for item in items), root)


def images_part(images: Iterable[tuple[str, int]], root: str) -> dict[str, Any]:
    """Number and hash of images, by their paths below the datasets' root and their labels, in any order.

    Args:
        images: (path, label), label -1 where none is shown.
    """
    base = Path(root).expanduser().absolute()
    lines = sorted(f"{_below(path, base)} {label}" for path, label in images)
    content = "\n".join(lines).encode("utf-8", "surrogateescape")
    return {"images": len(lines), "sha256": hashlib.sha256(content).hexdigest()}


def _below(path: str, base: Path) -> str:
    prefix = f"{base}{os.sep}"
    if path.startswith(prefix) and os.path.normpath(path) == path:  # the usual case, a million times
        return path[len(prefix) :].replace(os.sep, "/")
    whole = Path(path).absolute()
    return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()


def validation_part(dataset: Any, root: str) -> dict[str, Any]:
    """The validation images, how many a class has at least and at most, and whether they are the test images."""
    items = dataset.val or []
    counts = Counter(item.label for item in items).values()
    test = {item.impath for item in dataset.test or []}
    return {
        **labeled_part(items, root),
        "a_class": [min(counts, default=0), max(counts, default=0)],
        "is_the_test_set": bool(items) and {item.impath for item in items} == test,
    }


def teacher_part(name: str, teacher: Any) -> dict[str, Any]:
    """What is known of a teacher: a run by what it learned from, a model by its prompts and its file.

    Args:
        name: as the configuration has it. teacher: the loaded teacher.
    """
    if is_run(name):
        theirs = read(Path(name).expanduser())
        return {
            "run": name,
            "labeled": theirs.get("labeled"),
            "transductive": bool(theirs.get("transductive")),
        }
    return {"name": name, "weights_sha256": file_digest(name), "prompts_sha256": teacher.prompts_sha256}


def prompts_digest(templates: Sequence[str], names: Sequence[str]) -> str:
    """SHA-256 of the prompts: the templates and the class names in label order, as JSON."""
    return hashlib.sha256(json.dumps([list(templates), list(names)]).encode()).hexdigest()


def file_digest(name: str) -> str | None:
    """SHA-256 of the file that a model's name gives ("FILE" or "ARCHITECTURE:FILE"); None where it gives none."""
    for candidate in (name, name.partition(":")[2]):
        path = Path(candidate).expanduser()
        if candidate and path.is_file():
            content = hashlib.sha256()
            with path.open("rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    content.update(block)
            return content.hexdigest()
    return None


def versions() -> dict[str, str | None]:
    """Of Python, of this package, and of those that results may depend on; None for one that is not there."""
    found: dict[str, str | None] = {"python": platform.python_version(), "dho_plugin": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _unlabeled(batches: Any) -> list[str]:
    """The images whose labels a run does not see: the pool, and the steps' own images where their label is -1."""
    own = [path for path, label in zip(batches.labeled.paths, batches.labels.tolist(), strict=True) if label < 0]
    return [*own, *(batches.unlabeled.paths if batches.unlabeled is not None else [])]


def _seen_test(cfg: Any, dataset: Any, pool: Sequence[str]) -> bool:
    """Whether test images are in the pool, or were in that of the stage one whose prompts are used."""
    if cfg.TRAINER.NAME.endswith("CasPL") and is_transductive(cfg.TRAINER.CASPL.BOOSTING):
        return True
    if not cfg.TRAINER.DHO.TRANSDUCTIVE:
        return False
    found = overlap(pool, [item.impath for item in dataset.test or []])
    print(
        f"TRANSDUCTIVE: {len(found):,} test images are among the {len(pool):,} unlabelled ones"
        f"{', and every result of this run is called so' if found else ''}"
    )
    return bool(found)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
