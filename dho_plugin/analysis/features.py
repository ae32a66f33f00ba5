"""`python -m dho_plugin features`: what the feature extractors of finished runs are worth (Table 3, Fig. 7)."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..classes import class_list
from ..errors import UsageError
from ..loaders import TestImages
from ..pool import check_trainable, copy_policy, with_all_labels
from ..runs import run_config
from ..tables.cells import environment
from ..tables.command import write
from ..tables.summary import Table, comma_separated, markdown
from . import separation
from .answers import Stored, images_of, load, passes
from .compared import Run, find_runs
from .drawing import save
from .linear_evaluation import Scores, linear_evaluation, section
from .separation import Plane, Separation

READING = (
    "Both measures are of the images shown: in the feature space, where distances are cosine distances, and in the "
    f"picture. {separation.NEIGHBOURS}-NN is the share of images that their nearest others put into the right class. "
    "t-SNE draws neighbours together; distances between clusters and their sizes mean nothing."
)


class Features(NamedTuple):
    """What a run's feature extractor says of the N images of a set.

    Attributes:
        z: (N, d) float32, as the heads read it. labels: int64 (N,), among the set's own classes. classes: their names.
    """

    z: Tensor
    labels: Tensor
    classes: tuple[str, ...]


class Value(NamedTuple):
    """A number of a run: a score of a linear head, or a measure of separation."""

    run: str
    row: str
    seed: int
    measure: str
    value: float


def features_of(run: str | Path, split: str = "test", *, root: str = "") -> Features:
    """The features of a run on centre views of a set; the model looks at the images where they are not kept yet.

    Args:
        run: output folder of a finished training run. split: one of answers.sets_of, or "train": every training image,
            with its label, whether the run saw it or not. root: as for answers_of.

    Raises:
        UsageError: no run, or no such set; training images that are test images.
    """
    folder = Path(run).expanduser()
    stored = Stored(folder, split, "features")
    if not stored.fresh():
        trainer = load(folder, root)
        items, classes = _labelled(trainer, split)
        views = TestImages(items, size=trainer.student.image.size, interpolation=trainer.dm.interpolation)
        z = torch.cat(passes(trainer, views, lambda images: trainer.backbone(trainer.student.normalize(images))))
        stored.write({"features": z, "labels": torch.tensor([item.label for item in items])}, {"classes": classes})
    tensors, said = stored.read()
    return Features(tensors["features"], tensors["labels"], tuple(said["classes"]))


def _labelled(trainer: Any, split: str) -> tuple[Sequence[Any], tuple[str, ...]]:
    if split != "train":
        items, _, classes = images_of(trainer, split)
        return items, classes
    full = with_all_labels(trainer.cfg)
    check_trainable(full, final_model="last_step", copies=copy_policy(trainer.cfg))
    return full.train_x, class_list(full).names


# The command


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; mistakes are said before any model looks at an image."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin features", description=__doc__)
    p.add_argument("runs", nargs="+", metavar="RUN", help="output folders of finished runs on one dataset")
    p.add_argument("--linear", action="store_true", help="linear evaluation alone (default: both)")
    p.add_argument("--tsne", action="store_true", help="t-SNE alone (default: both)")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the new linear head")
    p.add_argument("--images", type=int, default=1000, help="test images that are shown, at most")
    p.add_argument("--classes", type=int, default=10, help="their classes, at most")
    p.add_argument("--root", default="", help="folder that holds the datasets now (default: the run's own)")
    p.add_argument("--output-dir", default="output/features")
    args = p.parse_args(argv)
    if not (args.linear or args.tsne):
        args.linear = args.tsne = True
    for flag, value, least in (("images", args.images, 10), ("classes", args.classes, 2)):
        if value < least:
            raise UsageError(f"--{flag} {value}: expected {least} or more")
    if len(set(args.seeds)) < len(args.seeds):
        raise UsageError(f"--seeds {' '.join(map(str, args.seeds))}: expected different numbers")
    return args


def evaluate(runs: Sequence[Run], seeds: Sequence[int], root: str) -> dict[Run, dict[int, Scores]]:
    """Linear evaluation of each run, with a head for each seed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for run in runs:
        print(f"{run}: linear evaluation", flush=True)
        train, test = (features_of(run.folder, split, root=root) for split in ("train", "test"))
        sets = (train.z, train.labels), (test.z, test.labels)
        settings: dict[str, Any] = {"classes": len(train.classes), "device": device}
        found[run] = {seed: linear_evaluation(*sets, **settings, seed=seed) for seed in seeds}
    return found


def draw(runs: Sequence[Run], args: argparse.Namespace) -> tuple[dict[str, Plane], Any]:
    """t-SNE of the same test images of each run, by its name, and the figure.

    Raises:
        UsageError: the runs have different test images.
    """
    features = {str(run): features_of(run.folder, "test", root=args.root) for run in runs}
    first = features[str(runs[0])]
    for name, other in features.items():
        if not torch.equal(other.labels, first.labels):
            raise UsageError(f"{runs[0]} and {name} have other test images: t-SNE shows the same images of every run")
    rows = separation.shown_images(first.labels, images=args.images, classes=args.classes)
    labels = first.labels[rows]
    planes = {}
    for name, of in features.items():
        print(f"{name}: t-SNE", flush=True)
        planes[name] = separation.embed(of.z[rows], labels)
    title = (
        f"{len(rows):,} of {len(first.labels):,} test images, {len(labels.unique())} of {len(first.classes)} classes"
    )
    return planes, separation.tsne_figure(planes, labels, first.classes, title)


def measured(
    runs: Sequence[Run], scores: Mapping[Run, Mapping[int, Scores]], planes: Mapping[str, Plane]
) -> list[Value]:
    """Every number that was found."""
    found = []
    for run in runs:
        named = {f"{name}, head of seed {s}": v for s, one in scores.get(run, {}).items() for name, v in _items(one)}
        if planes:
            plane = planes[str(run)]
            named |= {f"{name}, features": value for name, value in _items(plane.features)}
            named |= {f"{name}, picture": value for name, value in _items(plane.picture)}
        found += [Value(str(run.folder), run.row, run.seed, measure, value) for measure, value in named.items()]
    return found


def _items(one: Scores | Separation) -> Iterable[tuple[str, float]]:
    return one._asdict().items()


def main(argv: Sequence[str]) -> int:
    """Measure, draw, print; leave features.md, .csv and .json, tsne.svg and tsne.png in the output folder."""
    args = parse(argv)
    runs = find_runs(args.runs)
    if args.tsne:
        separation.check_installed()
    folder, cfg = Path(args.output_dir), run_config(runs[0].folder)
    command = shlex.join(["python", "-m", "dho_plugin", "features", *argv])
    paragraphs = [f"# Features on {cfg.DATASET.NAME}", f"    {command}", f"Made by {environment(cfg)}."]
    scores: dict[Run, dict[int, Scores]] = {}
    planes: dict[str, Plane] = {}
    if args.linear:
        scores = evaluate(runs, args.seeds, args.root)
        paragraphs += section(scores)
    if args.tsne:
        planes, figure = draw(runs, args)
        save(figure, folder / "tsne")
        shown = markdown(separation.measures_table(planes))
        paragraphs += ["## t-SNE (Figure 7)", "![t-SNE of the test images](tsne.svg)", shown, READING]
    text = "\n\n".join(paragraphs)
    print(f"\n{text}")
    found = measured(runs, scores, planes)
    table = Table(Value._fields, tuple((*map(str, value[:-1]), f"{value.value:.6g}") for value in found))
    objects = json.dumps([value._asdict() for value in found], indent=1)
    write(folder, "features", {"md": f"{text}\n", "csv": comma_separated(table), "json": f"{objects}\n"})
    return 0
