"""K labelled images a class, drawn as CoOp draws them, and the split that CoOp itself may have cached.

The draw is a function of the seed and of sorted input, so that nothing needs to be cached. CoOp caches pickles:
`split_fewshot/shot_<K>-seed_<S>.pkl` and, for ImageNet, all images in the order of the file system's listing in
`preprocessed.pkl`. They are read without running anything that they contain, and never written.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

from ..errors import UsageError, check_choice
from ..host import Datum

CHOICES = ("ours", "coop")
VAL_SHOTS = 4
Sets = dict[str, list[Datum]]


def few_shot(dataset: Any, cfg: Any, sets: Sets) -> Sets:
    """K = DATASET.NUM_SHOTS images a class of "train", and min(K, 4) of "val" if that is given; all if K < 1.

    Dassl's own function draws, train before val: in the state that a run's seed leaves, CoOp's split. Where CoOp has
    cached a split for this K and seed the two are compared, what differs is printed, and DATASET.SPLIT_CACHE decides.

    Args:
        dataset: a DatasetBase whose `dataset_dir` is set. sets: all images, of all classes.

    Raises:
        UsageError: SPLIT_CACHE is unknown, or "coop" and there is none or it has other images; it cannot be read
            or holds other things than images (see read_cache).
    """
    shots, wanted = cfg.DATASET.NUM_SHOTS, cfg.DATASET.SPLIT_CACHE
    check_choice("DATASET.SPLIT_CACHE", wanted, CHOICES)
    if shots < 1:
        return sets
    state = random.getstate()
    ours = _draw(dataset, sets, shots)
    file, listing = cache_files(dataset.dataset_dir, shots, cfg.SEED)
    source = file if file.is_file() else listing
    if not source.is_file():
        if wanted == "coop":
            raise UsageError(f"DATASET.SPLIT_CACHE coop: CoOp has cached no split at {file}; leave it at ours")
        return ours
    theirs, strangers = _find(read_cache(source), sets, Path(dataset.dataset_dir).name, source)
    if strangers:
        what = (
            f"{source} has {len(strangers)} images that the dataset lacks or labels otherwise, first {strangers[0]!r}"
        )
        if wanted == "coop":
            raise UsageError(f"{what}: delete it, or leave DATASET.SPLIT_CACHE at ours")
        print(f"CoOp's split of {what}; this run uses its own")
        return ours
    if source == listing:
        random.setstate(state)
        theirs = _draw(dataset, theirs, shots)
    chosen = "it" if wanted == "coop" else "its own (DATASET.SPLIT_CACHE coop for CoOp's)"
    print(f"CoOp's split of {source} {_compare(ours, theirs)}; this run uses {chosen}")
    return theirs if wanted == "coop" else ours


def cache_files(folder: str | Path, shots: int, seed: int) -> tuple[Path, Path]:
    """Where CoOp caches a K-shot split, and all images of ImageNet in the order in which it draws from them."""
    return Path(folder) / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl", Path(folder) / "preprocessed.pkl"


def _draw(dataset: Any, sets: Sets, shots: int) -> Sets:
    limits = {"train": shots, "val": min(shots, VAL_SHOTS)}
    return {
        name: dataset.generate_fewshot_dataset(sets[name], num_shots=limits[name]) for name in limits if name in sets
    }


def _compare(ours: Sets, theirs: Sets) -> str:
    paths = [[[item.impath for item in items] for items in sets.values()] for sets in (ours, theirs)]
    if paths[0] == paths[1]:
        return "is the one drawn here"
    other = sum(len(set(a) - set(b)) for a, b in zip(*paths, strict=True))
    if not other:
        return "has the images drawn here in another order"
    return f"differs in {other} of {sum(map(len, paths[0]))} images from the one drawn here"


def _find(cached: dict[str, list[tuple[str, int, str]]], sets: Sets, folder: str, file: Path) -> tuple[Sets, list[str]]:
    """The dataset's own items for the cached ones, wherever the dataset lay then, and the paths that have none."""

    def below(path: str) -> str:
        return path.replace("\\", "/").rpartition(f"/{folder}/")[2]

    found: Sets = {}
    strangers = []
    for name, items in sets.items():
        if name not in cached:
            raise UsageError(f"{file} has no {name!r} split: delete it")
        known = {(below(item.impath), item.label, item.classname): item for item in items}
        found[name] = []
        for path, label, classname in cached[name]:
            item = known.get((below(path), label, classname))
            if item is None:
                strangers.append(path)
            else:
                found[name].append(item)
    return found, strangers


def read_cache(path: Path) -> dict[str, list[tuple[str, int, str]]]:
    """A cache of CoOp's, by split: path as it was then, label and class name of each image.

    A pickle names what it wants built. Dassl's Datum alone is let in, as an empty object of a class made for this
    file; containers, strings and numbers need no name. So nothing that the file contains is run or changed.

    Raises:
        UsageError: the file asks for anything else (it is named), is damaged, or holds something else than images.
    """

    class Stored:
        pass

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) != ("dassl.data.datasets.base_dataset", "Datum"):
                raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}, and only Dassl's Datum is let in")
            return Stored

    try:
        with path.open("rb") as file:
            content = Reader(file).load()
        return {name: [_fields(item) for item in items] for name, items in content.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UsageError(f"{path} is no split as CoOp caches it ({error}): move it away") from error


def _fields(item: Any) -> tuple[str, int, str]:
    path, label, name = (vars(item)[f"_{field}"] for field in ("impath", "label", "classname"))
    if not (isinstance(path, str) and isinstance(label, int) and isinstance(name, str)):
        raise TypeError(f"an image of path {path!r}, label {label!r} and class {name!r}")
    return path, label, name
