"""Where the files of the datasets come from: one table, by the names of configs/datasets/.

Only what the readers open is listed, not the annotations from which the split files were once drawn. Sizes and sums
are published ones: sha256 from the checksums of tensorflow-datasets 4.9, md5 from torchvision's datasets, and FGVC's
from its authors' page (its size from copies that have that sum). For CoOp's files on Google Drive none is published;
of a split file the numbers of classes and images are compared instead, of UCF-101-midframes.zip the CRC of each member.
"""

from __future__ import annotations

from typing import NamedTuple

from ..datasets.catalogue import CATALOGUE, CLASSES, Description, SplitByFile
from ..datasets.imagenet import ClassFolders, ImageNet, ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2

DRIVE = "drive:"
CLASSNAMES = "classnames.txt"


class Source(NamedTuple):
    """One file to be had, and what it gives below the root.

    Attributes:
        url: "https://...", "http://...", "drive:<id>" for Google Drive, or "" where it can only be had by hand.
        file: its name. bytes: its size, or None where none is published.
        checksum: "sha256:..." or "md5:..." of the file; "" where none is published.
        moves: (path inside the archive, path below the root) for each file or folder that is put in place; the path
            inside is "" for a file that is no archive.
        inner: an archive inside the archive, which holds `moves`.
        steps: what to do by hand, after "1." and so on, where the usual (get it, put it there, run again) does not do.
        elsewhere: one sentence on where else it may be had.
    """

    url: str
    file: str
    bytes: int | None
    checksum: str
    moves: tuple[tuple[str, str], ...]
    inner: str = ""
    steps: tuple[str, ...] = ()
    elsewhere: str = ""

    @property
    def link(self) -> str:
        """The address for a browser; "" where there is none."""
        return self.url.replace(DRIVE, "https://drive.google.com/file/d/", 1)

    @property
    def places(self) -> tuple[str, ...]:
        """What there must be below the root."""
        return tuple(place for _, place in self.moves)

    def expected(self) -> str:
        """Size and checksum in words."""
        size = f"{self.bytes:,} bytes" if self.bytes is not None else "size not published"
        return f"{size}, {self.checksum.replace(':', ' ', 1) or 'checksum not published'}"


DESCRIBED = {described.name: described for described in CATALOGUE}
# By the name of the yaml file. What a reader would open, at its usual place or at another, is not fetched.
READERS: dict[str, type[SplitByFile] | type[ClassFolders]] = {
    "caltech101": CLASSES["Caltech101"],
    "oxford_pets": CLASSES["OxfordPets"],
    "stanford_cars": CLASSES["StanfordCars"],
    "oxford_flowers": CLASSES["OxfordFlowers"],
    "food101": CLASSES["Food101"],
    "fgvc_aircraft": CLASSES["FGVCAircraft"],
    "sun397": CLASSES["SUN397"],
    "dtd": CLASSES["DescribableTextures"],
    "eurosat": CLASSES["EuroSAT"],
    "ucf101": CLASSES["UCF101"],
    "imagenet": ImageNet,
    "imagenetv2": ImageNetV2,
    "imagenet_sketch": ImageNetSketch,
    "imagenet_a": ImageNetA,
    "imagenet_r": ImageNetR,
}
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
COLLECTION = (
    "PromptKD's authors keep a copy of the whole folder at https://huggingface.co/zhengli97/prompt_learning_dataset "
    "(their own archives, so the sums here do not apply to them; check the result with: data doctor)."
)


def described_by(source: Source) -> Description | None:
    """The dataset whose split file this is, or None where it is another file."""
    return next((d for d in DESCRIBED.values() if d.drive and d.lists == source.file), None)


def _split(name: str) -> Source:
    described = DESCRIBED[name]
    return Source(
        f"{DRIVE}{described.drive}", described.lists, None, "", (("", f"{described.folder}/{described.lists}"),)
    )


def _images(name: str) -> str:
    return f"{DESCRIBED[name].folder}/{DESCRIBED[name].images}"


def _class_names(folder: str) -> Source:
    return Source(f"{DRIVE}1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", CLASSNAMES, None, "", (("", f"{folder}/{CLASSNAMES}"),))


def _variant(kind: type[ClassFolders], url: str, inside: str, size: int, sum_: str) -> tuple[Source, ...]:
    archive = Source(url, url.rpartition("/")[2], size, sum_, ((inside, f"{kind.folder}/{kind.images}"),))
    return (archive, _class_names(kind.folder))


def _cars(half: str, size: int, sum_: str) -> Source:
    gone = f"Stanford took the file down in 2023 (github.com/pytorch/vision/issues/7545). {COLLECTION}"
    place = f"{DESCRIBED['StanfordCars'].folder}/cars_{half}"
    return Source("", f"cars_{half}.tgz", size, sum_, ((f"cars_{half}", place),), elsewhere=gone)


AIRCRAFT_LISTS = ("variants.txt", *(f"images_variant_{split}.txt" for split in ("train", "val", "test")))
IMAGENET_STEPS = (
    "With an account at https://image-net.org/download-images.php, get the ILSVRC2012 archives "
    "ILSVRC2012_img_train.tar (147,897,477,120 bytes, md5 1d675b47d978889d74fa0da5fadfb00e), "
    "ILSVRC2012_img_val.tar (6,744,924,160 bytes, md5 29b22e2961454d5413ddabcf34fc5622) and "
    "ILSVRC2012_devkit_t12.tar.gz (md5 fa75699e90414af021442c21a62c3abf)",
    "Put the three into {root}/imagenet/images",
    "Check and unpack them into its train/ and val/, a folder for each class (needs: pip install scipy): "
    "python -c \"from torchvision.datasets import ImageNet; [ImageNet('{root}/imagenet/images', s) for s in "
    "('train', 'val')]\"",
    "Or, where you have ImageNet: link its train/ and val/ (a folder for each class) into {root}/imagenet/images",
)

SOURCES: dict[str, tuple[Source, ...]] = {
    "caltech101": (
        Source(
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "caltech-101.zip",
            137414764,
            "sha256:331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
            (("101_ObjectCategories", _images("Caltech101")),),
            inner="caltech-101/101_ObjectCategories.tar.gz",
        ),
        _split("Caltech101"),
    ),
    "oxford_pets": (
        Source(
            f"{VGG}/pets/data/images.tar.gz",
            "images.tar.gz",
            791918971,
            "sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            (("images", _images("OxfordPets")),),
        ),
        _split("OxfordPets"),
    ),
    "stanford_cars": (
        _cars("train", 979269282, "sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288"),
        _cars("test", 977350468, "sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243"),
        _split("StanfordCars"),
    ),
    "oxford_flowers": (
        Source(
            f"{VGG}/flowers/102/102flowers.tgz",
            "102flowers.tgz",
            344862509,
            "sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            (("jpg", _images("OxfordFlowers")),),
        ),
        _split("OxfordFlowers"),
    ),
    "food101": (
        Source(
            "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            "food-101.tar.gz",
            4996278331,
            "sha256:d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
            (("food-101/images", _images("Food101")),),
        ),
        _split("Food101"),
    ),
    "fgvc_aircraft": (
        Source(
            f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            "fgvc-aircraft-2013b.tar.gz",
            2753340328,
            "md5:d4acdd33327262359767eeaa97a4f732",
            tuple(
                (f"fgvc-aircraft-2013b/data/{part}", f"{DESCRIBED['FGVCAircraft'].folder}/{part}")
                for part in (DESCRIBED["FGVCAircraft"].images, *AIRCRAFT_LISTS)
            ),
        ),
    ),
    "sun397": (
        Source(
            "https://huggingface.co/zhengli97/SUN397_Dataset/resolve/main/SUN397.tar.gz",
            "SUN397.tar.gz",
            39077296924,
            "sha256:f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
            (("SUN397", _images("SUN397")),),
            elsewhere="Princeton's own link is dead (github.com/pytorch/vision/issues/9348); this one is a copy that "
            f"PromptKD's authors keep, taken only if it has the original's sum. {COLLECTION}",
        ),
        _split("SUN397"),
    ),
    "dtd": (
        Source(
            f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz",
            "dtd-r1.0.1.tar.gz",
            625239812,
            "sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            (("dtd/images", _images("DescribableTextures")),),
        ),
        _split("DescribableTextures"),
    ),
    "eurosat": (
        Source(  # the copy that torchvision takes, of the file that the authors have at madm.dfki.de
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "EuroSAT.zip",
            94280567,
            "sha256:8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
            (("2750", _images("EuroSAT")),),
        ),
        _split("EuroSAT"),
    ),
    "ucf101": (
        Source(
            f"{DRIVE}10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
            "UCF-101-midframes.zip",
            None,
            "",
            (("UCF-101-midframes", _images("UCF101")),),
        ),
        _split("UCF101"),
    ),
    "imagenet": (
        Source(
            "",
            "ILSVRC2012",
            None,  # three archives, whose sizes and sums are in the steps
            "",
            tuple(
                ("", f"{ImageNet.folder}/{ImageNet.images}/{half}")
                for half in (ImageNet.train_folder, ImageNet.val_folder)
            ),
            steps=IMAGENET_STEPS,
        ),
        _class_names(ImageNet.folder),
    ),
    "imagenetv2": _variant(
        ImageNetV2,
        "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
        "imagenetv2-matched-frequency-format-val",
        1264079360,
        "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
    ),
    "imagenet_sketch": _variant(
        ImageNetSketch,
        "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip",
        "sketch",
        7593573012,
        "sha256:4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed",
    ),
    "imagenet_a": _variant(
        ImageNetA,
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        "imagenet-a",
        687552512,
        "sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
    ),
    "imagenet_r": _variant(
        ImageNetR,
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        "imagenet-r",
        2191079936,
        "sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
    ),
}
