"""Folders that are called or nested otherwise than CoOp's are read as they are, and said; nothing is guessed."""

from __future__ import annotations

import shutil
from pathlib import Path

import layouts
import pytest
from test_catalogue import YAML

from dho_plugin import cli
from dho_plugin.data import doctor
from dho_plugin.datasets.imagenet import packaged_names
from dho_plugin.datasets.layouts import NEAR, elsewhere
from dho_plugin.errors import UsageError
from dho_plugin.host import build_dataset

IMAGES = {layout.folder: (name, layout.below) for name, layout in layouts.LAYOUTS.items()}
V2, CALTECH, FGVC = "imagenetv2-matched-frequency-format-val", "101_ObjectCategories", "fgvc-aircraft-2013b/data"
TORCHVISION = {f"imagenet/images/{part}": f"imagenet/{part}" for part in ("train", "val")}


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> Path:
    return layouts.write_all(tmp_path_factory.mktemp("usual"))


def build(root: Path, dataset: str):
    words = ["--trainer", "CoOp", "--dataset", dataset, "--root", str(root), "--shots", "-1"]
    return build_dataset(cli.build_config(cli.parser().parse_args(words)))


def content(dataset, images: Path) -> list[list[tuple[str, int, str]]]:
    sets = (dataset.train_x, dataset.val or [], dataset.test)
    return [[(Path(i.impath).relative_to(images).as_posix(), i.label, i.classname) for i in items] for items in sets]


def dataset_of(folder: str) -> str:
    own = {
        "imagenet-sketch": "imagenet_sketch",
        "imagenet-adversarial": "imagenet_a",
        "imagenet-rendition": "imagenet_r",
    }
    return YAML[IMAGES[folder][0]] if folder in IMAGES else own.get(folder, folder)


# (the usual folder, what is moved where below the root, the root, the image folder as it is found)
Case = tuple[str, dict[str, str], str, str]


def renamed(folder: str) -> list[Case]:
    """Every other name of the table, the set once more in itself, and a root that is the set's own folder."""
    below = IMAGES[folder][1] if folder in IMAGES else "images"
    cases: list[Case] = [(folder, {folder: name}, ".", f"{name}/{below}") for name in NEAR[folder].folders]
    cases.append((folder, {folder: f"{folder}/{folder}"}, ".", f"{folder}/{folder}/{below}"))
    return [*cases, (folder, {}, folder, f"{folder}/{below}")]


CASES: list[Case] = [
    *(case for folder in IMAGES for case in renamed(folder)),
    *renamed("imagenet"),
    ("dtd", {"dtd/images": "dtd/dtd/images"}, ".", "dtd/dtd/images"),
    ("food-101", {"food-101/images": "food-101/food-101/images"}, ".", "food-101/food-101/images"),
    ("caltech-101", {f"caltech-101/{CALTECH}": f"caltech101/{CALTECH}"}, ".", f"caltech101/{CALTECH}"),
    ("fgvc_aircraft", {"fgvc_aircraft": FGVC}, ".", f"{FGVC}/images"),
    ("fgvc_aircraft", {"fgvc_aircraft": f"fgvc_aircraft/{FGVC}"}, ".", f"fgvc_aircraft/{FGVC}/images"),
    ("sun397", {"sun397/SUN397": "SUN397"}, ".", "SUN397"),
    ("sun397", {"sun397/SUN397/a": "sun397/a", "sun397/SUN397/c": "sun397/c"}, ".", "sun397"),
    ("eurosat", {"eurosat/2750": "eurosat/EuroSAT_RGB"}, ".", "eurosat/EuroSAT_RGB"),
    ("imagenet", TORCHVISION, ".", "imagenet"),
    ("imagenet", TORCHVISION, "imagenet", "imagenet"),
    ("imagenet", {"imagenet/images": "imagenet/ILSVRC/Data/CLS-LOC"}, ".", "imagenet/ILSVRC/Data/CLS-LOC"),
    ("imagenet", {"imagenet/images": "ILSVRC/Data/CLS-LOC"}, ".", "ILSVRC/Data/CLS-LOC"),
    ("imagenetv2", {f"imagenetv2/{V2}": V2}, ".", V2),
    ("imagenetv2", {f"imagenetv2/{V2}": "ImageNetV2"}, ".", "ImageNetV2"),
    ("imagenetv2", {}, "imagenetv2", f"imagenetv2/{V2}"),
    ("imagenet-sketch", {"imagenet-sketch/images": "sketch"}, ".", "sketch"),
    ("imagenet-sketch", {"imagenet-sketch/images": "imagenet-sketch/sketch"}, ".", "imagenet-sketch/sketch"),
    ("imagenet-adversarial", {"imagenet-adversarial/imagenet-a": "imagenet-a"}, ".", "imagenet-a"),
    ("imagenet-rendition", {"imagenet-rendition/imagenet-r": "imagenet-r"}, ".", "imagenet-r"),
    ("imagenet-rendition", {"imagenet-rendition/imagenet-r": "imagenet-r"}, "imagenet-r", "imagenet-r"),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "moves", "below", "images"), CASES, ids=lambda value: str(value)[:60])
def test_a_near_miss_has_the_same_items_and_is_said(usual, tmp_path, capsys, folder, moves, below, images):
    name, root = dataset_of(folder), tmp_path / "data"
    shutil.copytree(usual / folder, root / folder, copy_function=shutil.copyfile)
    if folder != "imagenet" and name.startswith("imagenet"):
        (root / "imagenet").mkdir()
        shutil.copyfile(usual / "imagenet/classnames.txt", root / "imagenet/classnames.txt")
    for start, end in moves.items():
        kept = (root / start).rename(tmp_path / "moved")
        (root / end).parent.mkdir(parents=True, exist_ok=True)
        kept.rename(root / end)
    below_usual = {"imagenetv2": V2, "imagenet-adversarial": "imagenet-a", "imagenet-rendition": "imagenet-r"}
    wanted = usual / folder / (IMAGES[folder][1] if folder in IMAGES else below_usual.get(folder, "images"))
    expected = content(build(usual, name), wanted)
    capsys.readouterr()
    dataset = build(root / below, name)
    said = capsys.readouterr().out
    assert content(dataset, root / images) == expected
    note = f"has no images: taken from {root / images}\n"
    assert note in said
    status = doctor.main(["--dataset", name, "--root", str(root / below)])
    out = capsys.readouterr().out
    assert status == 0 and f"{name}: found, a run would start\n" in out and note in out


def test_the_usual_place_wins_without_a_word(usual, tmp_path, capsys):
    for folder in ("dtd", "DTD", "dtd/dtd"):
        shutil.copytree(usual / "dtd", tmp_path / folder, dirs_exist_ok=True)
    dataset = build(tmp_path, "dtd")
    assert "taken from" not in capsys.readouterr().out
    content(dataset, tmp_path / "dtd" / "images")


def test_of_two_candidates_none_is_guessed(usual, tmp_path, capsys):
    for folder in ("DTD", "dtd-r1.0.1"):
        shutil.copytree(usual / "dtd", tmp_path / folder)
    with pytest.raises(UsageError, match=rf"2 other folders have: {tmp_path}/DTD/images and {tmp_path}/dtd-r1.0.1/im"):
        build(tmp_path, "dtd")
    capsys.readouterr()
    assert doctor.main(["--dataset", "dtd", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("dtd: partly found\n") and f"{tmp_path}/DTD/images and {tmp_path}/dtd-r1.0.1/images" in out


def test_two_spellings_of_one_folder_are_one(usual, tmp_path):
    shutil.copytree(usual / "dtd", tmp_path / "DTD")
    (tmp_path / "dtd-r1.0.1").symlink_to(tmp_path / "DTD")
    assert len(build(tmp_path, "dtd").test) == 6


def test_another_sets_folder_is_not_taken(usual, tmp_path):
    """`images` with class folders, as Food-101 has them too, but of DTD."""
    with pytest.raises(UsageError, match="missing folder"):
        build(usual / "dtd", "food101")
    with pytest.raises(UsageError, match="missing folder"):
        build(usual / "imagenet-rendition" / "imagenet-r", "imagenet_a")


def test_an_empty_usual_folder_does_not_hide_the_images(usual, tmp_path, capsys):
    shutil.copytree(usual / "dtd", tmp_path / "dtd/dtd")
    (tmp_path / "dtd/images").mkdir()
    assert len(build(tmp_path, "dtd").test) == 6


def test_class_names_of_the_variants_and_without_any_file(usual, tmp_path, capsys):
    for folder in ("imagenet-rendition", "imagenet"):
        shutil.copytree(usual / folder, tmp_path / folder)
    own, imagenets = (tmp_path / folder / "classnames.txt" for folder in ("imagenet-rendition", "imagenet"))
    own.unlink()
    imagenets.write_text(imagenets.read_text().replace("goldfish", "gold fish"))
    dataset = build(tmp_path, "imagenet_r")
    assert dataset.classnames == ["gold fish", "crane", "tank suit"]
    assert f"no {own}: class names from {imagenets}\n" in capsys.readouterr().out
    imagenets.unlink()
    for name in ("imagenet_r", "imagenet"):
        dataset = build(tmp_path, name)
        assert dataset.classnames == [packaged_names()[wnid] for wnid in dataset.class_ids]
        said = "class names from the packages open_clip and timm. CoOp's file may word some otherwise"
        assert said in capsys.readouterr().out
        assert doctor.main(["--dataset", name, "--root", str(tmp_path)]) == 0
        assert said in capsys.readouterr().out


def test_the_packages_names_are_in_label_order():
    names = packaged_names()
    assert len(names) == 1000 and list(names) == sorted(names)
    assert [names[wnid] for wnid in ("n01440764", "n02119789", "n07753592", "n15075141")] == [
        "tench", "kit fox", "banana", "toilet paper",
    ]  # fmt: skip


def test_where_a_file_lies_otherwise(tmp_path):
    near, far = tmp_path / "a/b/c/split.json", tmp_path / "a/b/c/d/split.json"
    far.parent.mkdir(parents=True)
    far.touch()
    assert elsewhere(tmp_path, "split.json") == []
    near.touch()
    assert elsewhere(tmp_path, "split.json") == [near]
    assert elsewhere(tmp_path, "split.json", most=0) == []
