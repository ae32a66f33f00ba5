"""`python -m dho_plugin export`: a finished run as a folder with one model, checked against the run itself."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import (
    predicting,
    trainers,  # noqa: F401 - registers trainers, datasets and configuration keys
)
from ._version import __version__
from .errors import UsageError
from .fused import WEIGHTS, FusedStudent, describe, fuse, save_fused
from .host import TRAINER_REGISTRY
from .parity import Sample, check, take_sample
from .predict import load_torch
from .predicting import CONFIG, ONNX, RESIZE, SCHEMA, Model, load_onnx
from .quantising import INT8, check_convolutional, compare, quantise
from .runs import load_run, run_config

PROGRAM = "model.pt2"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LIMIT = 2 * 10**9  # bytes that fit into one protobuf, apart from the graph


class Artefact(NamedTuple):
    """One form of the model: its main file, how it is written, and how whoever uses it will read it."""

    file: str
    write: Callable[[FusedStudent, Path], None]
    read: Callable[[Path], Model]


# The forms


def write_safetensors(fused: FusedStudent, folder: Path) -> None:
    """Weights and description for load_bundle."""
    save_fused(fused, folder / WEIGHTS)


def write_program(fused: FusedStudent, folder: Path) -> None:
    """A torch.export program for any number of images."""
    torch.export.save(traced(fused), str(folder / PROGRAM))


def write_onnx(fused: FusedStudent, folder: Path) -> None:
    """An ONNX graph for any number of images, with the weights inside where one file can hold them."""
    names: dict[str, Any] = {"input_names": ["images"], "output_names": list(fused.outputs)}
    program: Any = torch.onnx.export(traced(fused), dynamo=True, verbose=False, **names)
    size = sum(tensor.numel() * tensor.element_size() for tensor in fused.state_dict().values())
    program.save(str(folder / ONNX), external_data=size > ONNX_LIMIT)


def traced(fused: FusedStudent) -> torch.export.ExportedProgram:
    """The module as a graph whose batch dimension is free."""
    size = fused.image.size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    return torch.export.export(fused, (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})


def read_program(folder: Path) -> Model:
    """The torch.export program of a bundle."""
    module = torch.export.load(str(folder / PROGRAM)).module()

    @torch.no_grad()
    def run(images: Any) -> dict[str, Any]:
        return {name: output.numpy() for name, output in module(torch.from_numpy(images)).items()}

    return run


FORMATS = {
    "safetensors": Artefact(WEIGHTS, write_safetensors, load_torch),
    "torch": Artefact(PROGRAM, write_program, read_program),
    "onnx": Artefact(ONNX, write_onnx, load_onnx),
}


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Write the bundle, or leave nothing."""
    args = parse(argv)
    output = Path(args.output).expanduser()
    formats = check_request(args.formats, output, int8=args.int8)
    trainer = load_exact(args.run, args.root, args.tome)
    if args.int8:
        check_convolutional(trainer)
    fused = fuse(trainer)
    if args.formats is None and describe(fused) is None:
        formats.remove("safetensors")
        print(f"{WEIGHTS} is left out: load_bundle cannot build this kind of model again")
    sample = take_sample(trainer)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}-") as scratch:
        folder = Path(scratch) / output.name
        folder.mkdir()
        found = {FORMATS[name].file: write(name, fused, folder, sample) for name in formats}
        if args.int8:
            found[INT8] = write_int8(trainer, folder)
        write_config(trainer, fused, folder, found)
        os.rename(folder, output)
    print(f"{output}: python {output / 'predict.py'} IMAGES (needs onnxruntime, numpy, pillow)")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin export", description=__doc__)
    p.add_argument("run", metavar="RUN", help="the output folder of a training run")
    p.add_argument("--output", required=True, metavar="BUNDLE", help="the folder to write; it must not exist")
    p.add_argument("--formats", nargs="+", choices=tuple(FORMATS), help="default: all that can be had")
    p.add_argument("--root", default="", metavar="DATA", help="where the datasets are now (default: as in training)")
    p.add_argument("--tome", type=int, metavar="R", help="tokens that a CLIP ViT merges a layer (default: the run's)")
    p.add_argument("--int8", action="store_true", help="also an int8 model of a convolutional student, and its cost")
    return p.parse_args(argv)


def check_request(asked: Sequence[str] | None, output: Path, *, int8: bool) -> list[str]:
    """The formats to write.

    Raises:
        UsageError: the output exists, or cannot be written; a format that needs packages that are missing.
    """
    if output.exists():
        raise UsageError(f"{output} exists: choose another --output, or delete it")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.absolute().parent}")
    missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
    if missing and (int8 or "onnx" in (asked or ())):
        raise UsageError(f"onnx needs {', '.join(missing)}: pip install 'dho_plugin[export]'")
    formats = list(dict.fromkeys(asked or FORMATS))
    if missing and "onnx" in formats:
        formats.remove("onnx")
        print(f"{ONNX} is left out, {', '.join(missing)} missing: pip install 'dho_plugin[export]'")
    if int8 and "onnx" not in formats:
        raise UsageError("--int8 is made of the ONNX model: add onnx to --formats")
    return formats


def load_exact(run: str, root: str, tome: int | None = None) -> Any:
    """The trainer of a run on the CPU in float32, whatever it was trained in."""
    changes: dict[str, Any] = {"USE_CUDA": False, "DATALOADER.NUM_WORKERS": 0}
    if root:
        changes["DATASET.ROOT"] = root
    if tome is not None:
        changes["MODEL.TOKEN_MERGING"] = tome
    name = run_config(run).TRAINER.NAME
    known = name in TRAINER_REGISTRY.registered_names()
    section = getattr(TRAINER_REGISTRY.get(name), "section", "") if known else ""
    if section:
        changes[f"TRAINER.{section}.PREC"] = "fp32"
    return load_run(run, changes)


def write(name: str, fused: FusedStudent, folder: Path, sample: Sample) -> dict[str, Any]:
    """Write one form, read it back, check it, print a line.

    Raises:
        UsageError: it cannot be written or read; it does not answer as the run does.
    """
    artefact = FORMATS[name]
    try:
        artefact.write(fused, folder)
        run = artefact.read(folder)
    except Exception as error:  # exporters fail in ways of their own
        raise UsageError(
            f"{artefact.file} cannot be had for this model: leave {name} out of --formats. "
            f"{type(error).__name__}: {error}"
        ) from error
    largest = check(artefact.file, run, sample)
    size = sum(part.stat().st_size for part in folder.glob(f"{artefact.file}*"))
    shown = ", ".join(f"{value:.1e} at batch {batch}" for batch, value in largest.items())
    print(f"{artefact.file:18} {size / 1e6:8.2f} MB, largest difference from the run's probabilities: {shown}")
    return {"largest_difference": {str(batch): value for batch, value in largest.items()}}


def write_int8(trainer: Any, folder: Path) -> dict[str, Any]:
    """Quantise the ONNX model, and say what that costs."""
    quantise(folder / ONNX, folder / INT8, trainer)
    cost = compare(trainer, load_onnx(folder), load_onnx(folder, INT8))
    sizes = [(folder / file).stat().st_size / 1e6 for file in (ONNX, INT8)]
    print(
        f"{INT8:18} {sizes[1]:8.2f} MB against {sizes[0]:.2f} MB; accuracy {cost.int8:.2f} % against {cost.fp32:.2f} % "
        f"on {cost.images:,} {cost.split} images, a cost of {cost.fp32 - cost.int8:.2f} points"
    )
    return {"accuracy": cost._asdict()}


def write_config(trainer: Any, fused: FusedStudent, folder: Path, found: Mapping[str, Any]) -> None:
    """Write predict.py and config.json."""
    shutil.copyfile(predicting.__file__, folder / "predict.py")
    at = fused.interpolation
    artefacts = {}
    for path in sorted(folder.iterdir()):
        shutil.copymode(folder / "predict.py", path)  # safetensors makes its files private
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        artefacts[path.name] = {"sha256": digest, "bytes": path.stat().st_size, **found.get(path.name, {})}
    image, cfg = fused.image, trainer.cfg
    config = {
        "schema": SCHEMA,
        "classes": {"ids": trainer.classes.ids, "names": trainer.classes.names},
        "image": {**image._asdict(), "interpolation": cfg.INPUT.INTERPOLATION, "resize": RESIZE},
        "outputs": fused.outputs,
        "alpha": at.alpha if at else None,
        "beta": at.beta if at else None,
        "alpha_beta_chosen_by": at.source if at else None,
        "trainer": type(trainer).__name__,
        "student": trainer.student.name,
        "token_merging": cfg.MODEL.TOKEN_MERGING,
        "dataset": cfg.DATASET.NAME,
        "versions": {"dho_plugin": __version__, "torch": torch.__version__},
        "artefacts": artefacts,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
