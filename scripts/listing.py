"""python scripts/listing.py [IMAGES]: how long a run takes to know its images, on a generated tree of empty files.

1,281,167 training images by default, ImageNet's number, and 50 test images a class. No image is opened: an index of
them, the K-shot split, the unlabelled pool and the check for test images in it are made from listings alone.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dho_plugin import cli
from dho_plugin.host import build_dataset, set_random_seed
from dho_plugin.manifest import images_part, shared_images
from dho_plugin.pool import unlabeled_paths

CLASSES, TEST = 1000, 50


def write_tree(root: Path, images: int) -> None:
    """An ImageNet of empty files in CoOp's layout."""
    wnids = [f"n{1440764 + 13 * label:08d}" for label in range(CLASSES)]
    for label, wnid in enumerate(wnids):
        for split, count in (("train", images // CLASSES + (label < images % CLASSES)), ("val", TEST)):
            folder = root / "imagenet/images" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                os.close(os.open(folder / f"{wnid}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))
    names = "".join(f"{wnid} class {label}\n" for label, wnid in enumerate(wnids))
    (root / "imagenet/classnames.txt").write_text(names)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long it took, and the most memory that the process has held."""
    start = time.perf_counter()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:48} {time.perf_counter() - start:6.1f} s   {memory - BEFORE:5.2f} GiB more than before")


BEFORE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 1_281_167)
        wanted = f"--trainer LinearProbeDHO --dataset imagenet --shots 16 --root {folder} --seed 1"
        cfg = cli.build_config(cli.parser().parse_args(wanted.split()))
        set_random_seed(cfg.SEED)
        with timed("index of all images, 16 a class drawn"):
            dataset = build_dataset(cfg)
        with timed("the unlabelled pool, and no test image in it"):
            pool = unlabeled_paths(cfg, dataset.train_x, dataset.test)
        with timed("hashes and overlaps for the manifest"):
            images_part(((path, -1) for path in pool), folder)
            shared_images(dataset, pool)
        print(f"{len(dataset.train_x):,} labelled, {len(pool):,} unlabelled, {len(dataset.test):,} test images")
