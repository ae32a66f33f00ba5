"""The protocol of a run, in manifest.json of its output folder: what it learned from, how, and what came out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ._version import __version__
from .datasets.split_cache import VAL_SHOTS
from .distributed import is_main
from .errors import UsageError
from .host import HOST
from .leaks import overlaps
from .packed import pack_of, packed_line
from .runs import is_run
from .sealed import write_whole
from .split_record import below, digest, write_split

MANIFEST = "manifest.json"
OPEN: Mapping[str, Any] = {"interpolation": None, "finished": None, "skipped": [], "results": None}  # until the end
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy")


def begin(
    cfg: Any,
    dataset: Any,
    batches: Any,
    *,
    teacher: Any = None,
    teacher_name: str = "",
    seed: int,
    before: Path | None,
    over: bool,
) -> bool:
    """Write the manifest of a run that starts or goes on.

    Args:
        dataset: the run's Dassl dataset. batches: its StepBatches. teacher: the loaded teacher, None for none.
        seed: of order and views. before: folder of the run that it goes on from, whose start stays what it was; None
            for a new one. over: no step is left; what stands there of its end does so until it is evaluated again.

    Raises:
        UsageError: a run that goes on, with other images than it began with.

    Returns:
        Whether the run is transductive: test images are in the unlabelled pool, or in that of a run it starts from.
    """
    folder, root = Path(cfg.OUTPUT_DIR), cfg.DATASET.ROOT
    pool = _unlabeled(batches)
    packed = packed_part(dataset, pool)
    taught = teacher_part(teacher_name, teacher) if teacher is not None else None
    shared = shared_images(dataset, pool)
    transductive = _seen_test(cfg, shared["test & unlabeled"]) or bool(taught and taught.get("transductive"))
    validation = validation_part(dataset, root, cfg.DATASET.NUM_SHOTS)
    print(validation_line(validation))
    earlier = read(before) if before is not None else {}
    images = {
        "labeled": labeled_part(dataset.train_x, root),
        "unlabeled": images_part(((path, -1) for path in pool), root),
    }
    if earlier and not cfg.TRAIN.RESUME_FORCE:
        check_same_images(earlier, images, folder)
    if is_main():
        write_split(folder, dataset, root)
    now = {"time": _now(), "command": sys.argv}
    write(
        folder,
        {
            **images,
            "validation": validation,
            "test": labeled_part(dataset.test or [], root),
            "in_two_sets": shared,
            "packed": packed,
            "transductive": transductive,
            "teacher": taught,
            "student": {
                "name": cfg.MODEL.BACKBONE.NAME,
                "weights_sha256": file_digest(cfg.MODEL.BACKBONE.NAME),
            },
            "view_seed": seed,
            "host": HOST,
            "versions": versions(),
            "started": earlier.get("started", now),
            "resumed": [*earlier.get("resumed", []), now] if earlier else [],
            **{name: earlier[name] if over and name in earlier else value for name, value in OPEN.items()},
        },
    )
    return transductive


def check_same_images(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Compare the images of a run that goes on with those that it began with.

    Raises:
        UsageError: they are others.
    """
    for name, part in now.items():
        there = before[name]
        if there["sha256"] != part["sha256"]:
            raise UsageError(
                f"{folder} holds a run with {there['images']:,} {name} images, and the {part['images']:,} of now are "
                "others: has the dataset been changed? Choose another --output-dir, or go on all the same with "
                "--resume-force"
            )


def finish(folder: Path, **parts: Any) -> None:
    """Add to a run's manifest what is known once it is over, and when that was."""
    write(folder, {**read(folder), **parts, "finished": _now()})


def read(folder: Path) -> dict[str, Any]:
    """A run's manifest; empty if it left none.

    Raises:
        UsageError: something else stands there.
    """
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UsageError(f"{path} is no manifest of a run ({error}): delete it to go on without it") from error


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write it as a whole or not at all; of several processes the first does."""
    if is_main():
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def is_transductive(folder: str | Path) -> bool:
    """Whether a run, by its manifest, has learned from test images without their labels."""
    return bool(str(folder)) and bool(read(Path(folder).expanduser()).get("transductive"))


def caveats(*, oracle: bool, transductive: bool, images: Iterable[str]) -> list[str]:
    """The words that nobody may overlook, for results on images with these paths."""
    return ["oracle"] * oracle + ["transductive"] * transductive + ["packed"] * (pack_of(images) is not None)


def called(column: str, words: Sequence[str]) -> str:
    """A column's name with its caveats: "test (oracle, transductive)"."""
    return f"{column} ({', '.join(words)})" if words else column


def named(row: Mapping[str, float], words: Sequence[str]) -> dict[str, float]:
    """A row of results, each column `called` so."""
    return {called(column, words): value for column, value in row.items()}


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
    pairs = [(below(path, base), label) for path, label in images]
    return {"images": len(pairs), "sha256": digest(pairs)}


def validation_part(dataset: Any, root: str, shots: int) -> dict[str, Any]:
    """The validation images, how many a class has at least and at most, and by which protocol they are what they are.

    Args:
        dataset: a Dassl dataset; `validation` names its protocol, if it has that attribute. shots: K, below 1 for all.
    """
    items = dataset.val or []
    counts = Counter(item.label for item in items).values()
    test = bool(items) and {item.impath for item in items} == {item.impath for item in dataset.test or []}
    drawn = max(counts, default=0) == min(shots, VAL_SHOTS)  # by CoOp's own dataset classes too
    named = getattr(dataset, "validation", "min(K,4)" if drawn else "full")
    return {
        **labeled_part(items, root),
        "a_class": [min(counts, default=0), max(counts, default=0)],
        "is_the_test_set": test,
        "protocol": "none" if not items else "test" if test else named,
    }


def validation_line(part: Mapping[str, Any]) -> str:
    """What validation_part says, in words."""
    said = {
        "none": "none",
        "test": "{images:,} images, the test set itself (as CoOp returns it for ImageNet): nothing may be chosen on it",
        "min(K,4)": "{images:,} images, min(K, 4) a class as CoOp draws them",
        "full": "all {images:,} images of the dataset",
        "own": "{images:,} images of one's own (val/, or rows of split val)",
    }
    return "Validation: " + said[part["protocol"]].format(**part)


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


def packed_part(dataset: Any, pool: Sequence[str]) -> dict[str, Any] | None:
    """The pack that a run's images are from (packed.py), which is printed; None where they are originals."""
    sets = (dataset.train_x, dataset.val, dataset.test)
    found = pack_of([*pool, *(item.impath for items in sets for item in items or [])])
    if found is not None:
        print(packed_line(found))
    return found


def _unlabeled(batches: Any) -> list[str]:
    """The images whose labels a run does not see: the pool, and the steps' own images where their label is -1."""
    own = [path for path, label in zip(batches.labeled.paths, batches.labels.tolist(), strict=True) if label < 0]
    return [*own, *(batches.unlabeled.paths if batches.unlabeled is not None else [])]


def shared_images(dataset: Any, pool: Sequence[str]) -> dict[str, int]:
    """How many images stand in two of a run's four sets; what may touch a choice made on validation is printed."""
    sets = {
        name: [item.impath for item in items or []]
        for name, items in (("labeled", dataset.train_x), ("validation", dataset.val), ("test", dataset.test))
    }
    found = {" & ".join(sorted(pair)): len(same) for pair, same in overlaps({**sets, "unlabeled": pool}).items()}
    seen = {"labeled": found["labeled & validation"], "unlabeled": found["unlabeled & validation"]}
    for kind, number in seen.items():
        if number:
            print(f"{number:,} validation images are among the {kind} images too")
    return found


def _seen_test(cfg: Any, in_pool: int) -> bool:
    """Whether test images are in the pool, or were in that of the stage one whose prompts are used."""
    if cfg.TRAINER.NAME.endswith("CasPL") and is_transductive(cfg.TRAINER.CASPL.BOOSTING):
        return True
    if not cfg.TRAINER.DHO.TRANSDUCTIVE:
        return False
    print(
        f"TRANSDUCTIVE: {in_pool:,} test images are among the unlabelled ones"
        f"{', and every result of this run is called so' if in_pool else ''}"
    )
    return bool(in_pool)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
