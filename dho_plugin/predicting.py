#!/usr/bin/env python3
"""Classify images with an exported model. Needs numpy, pillow and onnxruntime; run it in the folder of the model.

This file is copied into every exported model as predict.py, so it imports nothing of the package that wrote it.
"""

from __future__ import annotations

import argparse
import csv
import glob
import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
from PIL import Image

SCHEMA = 1
CONFIG = "config.json"
ONNX = "model.onnx"
RESIZE = "shorter side to size, centre crop"
SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SECONDS_BETWEEN_LINES = 5.0
MAX_PIXELS = 178_956_970  # of an image, 0.5 GiB as RGB: where Pillow too refuses to decode, unless told otherwise
MAX_ASPECT = 500  # longer over shorter side: brought to a shorter side of 448, such an image has 100 million pixels

Record = TypeVar("Record")
Model = Callable[[np.ndarray], dict[str, np.ndarray]]  # uint8 (N, 3, size, size) -> output (N, C) by name


class Refused(ValueError):
    """Wrong input: the message says what was given and what was expected."""


# The model


def read_config(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself.

    Raises:
        Refused: no bundle, or one whose description this version does not know.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise Refused(f"no exported model in {folder}: expected a folder with {CONFIG}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        schema, resize = config["schema"], config["image"]["resize"]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{file} describes no exported model: {type(error).__name__} {error}") from error
    if schema != SCHEMA or resize != RESIZE:
        raise Refused(f"{file}: schema {schema!r} with resize {resize!r}; known here: {SCHEMA} with {RESIZE!r}")
    return config


def load_onnx(folder: Path, file: str = ONNX) -> Model:
    """The model as ONNX Runtime runs it, on the CPU.

    Raises:
        Refused: onnxruntime or the file is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise Refused("onnxruntime is missing: pip install onnxruntime numpy pillow") from error
    if not (folder / file).is_file():
        raise Refused(f"no {file} in {folder}: export it with --formats onnx")
    session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    entry = session.get_inputs()[0].name

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {entry: images}), strict=True))

    return run


# Images


def find_images(given: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Image files in the order given, each once, and what is wrong with names that lead to none.

    Args:
        given: files (any suffix), folders (searched through, for known suffixes), patterns with * ? [ ] or **.
    """
    found: dict[Path, None] = {}
    problems = []
    for name in given:
        path = Path(name).expanduser()
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        files = [file for match in matches for file in (_below(match) if match.is_dir() else [match])]
        if not matches:
            problems.append(f"{name}: no such file, folder or match")
        elif not files:
            problems.append(f"{name}: no image in this folder (known suffixes: {' '.join(SUFFIXES)})")
        found.update(dict.fromkeys(files))
    return list(found), problems


def _below(folder: Path) -> list[Path]:
    files = [Path(where, name) for where, _, names in os.walk(folder) for name in names]
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES)


def open_rgb(path: str | Path) -> Image.Image:
    """Decode an image file as 8-bit RGB: the one rule for training, evaluation, teacher views and exported models.

    As CoOp and torchvision do it, Pillow converts: a palette is looked up, grey and 1-bit images get three equal
    channels, CMYK is converted without a colour profile, alpha is dropped (not composited), and of an animation or of
    several pages the first is taken. The EXIF orientation is ignored. Unlike there, 16-bit grey values are divided by
    257, where Pillow would cut them off at 255.

    Raises:
        Refused: more than MAX_PIXELS pixels, or MAX_ASPECT times as long as wide, both said before pixels are decoded;
            numbers without a known range (32-bit floats; integers beyond 16 bits).
        Exception: Pillow's, of many kinds, for a file that is truncated, empty, a folder or no image.
    """
    with Image.open(path) as image:
        short, long = sorted(image.size)
        if short * long > MAX_PIXELS:
            raise Refused(f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} that are decoded")
        if long > MAX_ASPECT * short:
            raise Refused(f"{image.width} x {image.height} pixels, more than {MAX_ASPECT} times as long as wide")
        if image.mode == "F":
            raise Refused("its pixels are floating-point numbers of no known range: save it with 8 bits")
        if image.mode.startswith("I"):
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 65535:
                raise Refused("its pixels are integers of more than 16 bits: save it with 8 bits")
            return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")


def read_view(path: Path, size: int, interpolation: str) -> np.ndarray:
    """Open an image as RGB, bring its shorter side to `size`, cut out the centre: uint8 (3, size, size).

    To the bit what torchvision's resize and center_crop make of it.
    """
    image = open_rgb(path)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(size * long / short)
    wanted = (size, longer) if width <= height else (longer, size)
    if wanted != image.size:
        image = image.resize(wanted, INTERPOLATIONS[interpolation])
    left, top = (round((side - size) / 2.0) for side in wanted)
    cut = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.array(cut, dtype=np.uint8).transpose(2, 0, 1))


# Answers


def answers(
    model: Model, config: dict[str, Any], paths: Sequence[Path], *, batch_size: int, top_k: int, explain: bool
) -> Iterator[dict[str, Any]]:
    """One record for each image, in order; {"image", "error"} for one that cannot be read.

    Args:
        top_k: classes in a record's "top". explain: each head's own first class, and whether they agree.
    """
    size, interpolation = config["image"]["size"], config["image"]["interpolation"]
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        views: list[np.ndarray] = []
        errors: dict[Path, str] = {}
        for path in batch:
            try:
                views.append(read_view(path, size, interpolation))
            except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
                errors[path] = f"{type(error).__name__}: {error}"
        outputs = model(np.stack(views)) if views else {}
        row = 0
        for path in batch:
            if path in errors:
                yield {"image": str(path), "error": errors[path]}
                continue
            yield record(str(path), {name: out[row] for name, out in outputs.items()}, config, top_k, explain)
            row += 1


def record(
    image: str, outputs: dict[str, np.ndarray], config: dict[str, Any], top_k: int, explain: bool
) -> dict[str, Any]:
    """The answer for one image: its `top_k` classes, and with `explain` "ce", "kd" and "agree"."""
    found: dict[str, Any] = {"image": image, "top": first(outputs["probabilities"], config, top_k)}
    if explain:
        heads = {name: first(outputs[name], config, 1)[0] for name in ("ce", "kd")}
        found.update(heads, agree=heads["ce"]["id"] == heads["kd"]["id"])
    return found


def first(probabilities: np.ndarray, config: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The `count` most probable of C classes: id, name, probability."""
    classes = config["classes"]
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [
        {"id": classes["ids"][i], "name": classes["names"][i], "probability": float(probabilities[i])} for i in order
    ]


# Writing


def printable(text: str) -> str:
    """Text that stays on its line and can be encoded: control characters and lone surrogates are escaped.

    A class name or a path may hold a line break, and what follows it would read as a line of ours.
    """
    odd = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in odd else char for char in text
    )


def write_text(records: Iterable[dict[str, Any]], out: TextIO, config: dict[str, Any], explain: bool) -> None:
    """A line for each image, with `explain` a second one; a name that several classes have stands with its id."""
    names = config["classes"]["names"]

    def shown(found: dict[str, Any]) -> str:
        same = f" ({printable(found['id'])})" if names.count(found["name"]) > 1 else ""
        return f"{printable(found['name'])}{same} {100 * found['probability']:.1f} %"

    for one in records:
        print(f"{printable(one['image'])}: {', '.join(map(shown, one['top']))}", file=out)
        if explain:
            verdict = "they agree" if one["agree"] else "they differ"
            print(f"    CE head: {shown(one['ce'])}; KD head: {shown(one['kd'])}; {verdict}", file=out)


def write_csv(records: Iterable[dict[str, Any]], out: TextIO, config: dict[str, Any], explain: bool) -> None:
    """A row for each image; the classes stand beside each other from the most probable on."""
    rows = iter(records)
    one = next(rows, None)
    table = csv.writer(out, lineterminator="\n")
    keys = ("id", "name", "probability")
    ranks = [f"{key}_{rank}" for rank in range(1, 1 + len(one["top"]) if one else 2) for key in keys]
    heads = [f"{head}_{key}" for head in ("ce", "kd") for key in keys] + ["agree"] if explain else []
    table.writerow(["image", *ranks, *heads])
    while one is not None:
        shown = [*one["top"], *((one["ce"], one["kd"]) if explain else ())]
        cells = [found[key] for found in shown for key in keys]
        table.writerow([one["image"], *cells, *([str(one["agree"]).lower()] if explain else [])])
        one = next(rows, None)


def write_json(records: Iterable[dict[str, Any]], out: TextIO, config: dict[str, Any], explain: bool) -> None:
    """A list of records: {"image", "top": [{"id", "name", "probability"}]}, with `explain` also "ce", "kd", "agree"."""
    print("[", end="", file=out)
    for number, one in enumerate(records):
        print(f"{',' if number else ''}\n{json.dumps(one)}", end="", file=out)
    print("\n]", file=out)


FORMATS = {"text": write_text, "csv": write_csv, "json": write_json}


def progress(records: Iterable[Record], total: int) -> Iterator[Record]:
    """Pass records on and say on stderr how far it is: a bar in a terminal, else a line now and then."""
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            yield from tqdm(records, total=total, unit="image", file=sys.stderr)
            return
    said = time.monotonic()
    for done, one in enumerate(records, 1):
        yield one
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{done:,} of {total:,} images", file=sys.stderr, flush=True)


def destination(file: str) -> AbstractContextManager[TextIO]:
    """A file, or standard output for ""; a path that its encoding cannot express is escaped and stops nothing."""
    if file:
        return open(file, "w", encoding="utf-8", newline="", errors="backslashreplace")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return nullcontext(sys.stdout)


# The command


def parser(prog: str, folder: Path | None) -> argparse.ArgumentParser:
    """The command line; `folder` is the model where none is named."""
    p = argparse.ArgumentParser(prog=prog, description="Classify images with an exported model.")
    given = {"default": str(folder)} if folder else {"required": True}
    p.add_argument("--model", metavar="BUNDLE", help="the folder that export wrote", **given)
    p.add_argument("images", nargs="+", help="files, folders (with all below them), patterns such as 'photos/**/*.jpg'")
    p.add_argument("--top-k", type=int, default=5, metavar="K", help="classes shown for each image (default 5)")
    p.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default 32)")
    p.add_argument("--format", choices=tuple(FORMATS), default="text")
    p.add_argument("--output", default="", metavar="FILE", help="write here instead of standard output")
    p.add_argument("--explain", action="store_true", help="also each head's own answer, and whether they agree")
    return p


def main(argv: Sequence[str] | None = None, *, load: Callable[[Path], Model] = load_onnx, prog: str = "") -> int:
    """Answer for all images that can be read; 1 where there were others, 2 for wrong input."""
    here = Path(__file__).resolve().parent
    p = parser(prog or Path(__file__).name, here if (here / CONFIG).is_file() else None)
    args = p.parse_args(argv)
    try:
        return run(args, load)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace, load: Callable[[Path], Model]) -> int:
    """What main does, apart from reading the command line."""
    for flag, value in (("--top-k", args.top_k), ("--batch-size", args.batch_size)):
        if value < 1:
            raise Refused(f"{flag} {value}: expected 1 or more")
    folder = Path(args.model).expanduser()
    config = read_config(folder)
    if args.explain and "kd" not in config["outputs"]:
        raise Refused("--explain compares two heads, and this model has one")
    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise Refused(f"--output {args.output}: there is no such folder")
    paths, problems = find_images(args.images)
    model = load(folder)
    found = answers(model, config, paths, batch_size=args.batch_size, top_k=args.top_k, explain=args.explain)

    def readable() -> Iterator[dict[str, Any]]:
        for one in progress(found, len(paths)):
            if "error" in one:
                problems.append(f"{one['image']}: {one['error']}")
            else:
                yield one

    with destination(args.output) as out:
        FORMATS[args.format](readable(), out, config, args.explain)
    for problem in problems:
        print(f"skipped {printable(problem)}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
