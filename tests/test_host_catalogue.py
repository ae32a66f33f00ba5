"""The datasets against CoOp's own classes: COOP_HOME=... DASSL_HOME=... pytest -m host_coop"""

from __future__ import annotations

import agreement
import layouts
import tiny
from test_host_coop import coop, run  # noqa: F401 - a fixture

pytestmark = agreement.needs("COOP_HOME")

# Both classes for every part, seed and K, from the state that the seed leaves; theirs first, so that ours finds its
# cache. A listing is sorted, as ours always is.
COMPARE = """
import importlib, itertools, os, sys
listdir = os.listdir
os.listdir = lambda path=".": sorted(listdir(path))
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import set_random_seed
import dho_plugin.trainers
from dho_plugin import datasets
from dho_plugin.host import HOST

assert HOST.startswith("dassl")

def content(dataset):
    sets = (dataset.train_x, dataset.val or [], dataset.test)
    return dataset.classnames, [[(os.path.abspath(i.impath), i.label, i.classname) for i in items] for items in sets]

root, *names = sys.argv[1:]
cfg = get_cfg_default()
cfg.DATASET.ROOT = root
for name in names:
    ours = datasets.CLASSES.get(name) or getattr(datasets, name)
    module = {"DescribableTextures": "dtd", "OxfordPets": "oxford_pets", "StanfordCars": "stanford_cars",
              "OxfordFlowers": "oxford_flowers", "FGVCAircraft": "fgvc_aircraft", "ImageNetA": "imagenet_a",
              "ImageNetR": "imagenet_r", "ImageNetSketch": "imagenet_sketch"}.get(name, name.lower())
    theirs = getattr(importlib.import_module(f"datasets.{module}"), name)
    assert DATASET_REGISTRY.get(name) is theirs
    choices = itertools.product((1, 2, 5, -1), (1, 2), ("all", "base", "new"), ("ours", "coop"))
    for shots, seed, part, cache in choices:
        cfg.DATASET.NUM_SHOTS, cfg.SEED = shots, seed
        cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.SPLIT_CACHE = part, cache
        found = []
        for kind in (theirs, ours):
            set_random_seed(seed)
            found.append(content(kind(cfg)))
        assert found[0] == found[1], (name, shots, seed, part, cache, found)
        print(f"SAME {name}", *map(len, found[0][1]))
"""


def test_every_split_is_image_for_image_coops(coop, tmp_path):  # noqa: F811
    root = tiny.imagenet_tree(tmp_path, train=7)
    for name in layouts.LAYOUTS:
        layouts.write(root, name)
    folder = root / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    for label in range(1000):  # CoOp's class counts on as many
        (folder / str(label)).mkdir(exist_ok=True)
        (folder / str(label) / "one.jpeg").touch()
    names = "".join(f"n{label:08d} name {label}\n" for label in range(1000))
    (root / "imagenetv2" / "classnames.txt").write_text(names)

    trainable = [*layouts.LAYOUTS, "ImageNet"]
    names = [*trainable, "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
    out = run(coop, "-c", COMPARE, str(root), *names).stdout
    assert [out.count(f"SAME {name} ") for name in names] == [48] * 15
    # CoOp's pickles were read: 3 K, 2 seeds, 3 parts.
    for use in ("its own (", "it\n"):
        assert out.count(f"is the one drawn here; this run uses {use}") == 18 * len(trainable)
