"""Images that are broken or odd: one rule for training, evaluation, teacher views and exported models."""

from __future__ import annotations

import resource
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from dho_plugin import manifest, predicting
from dho_plugin.errors import UsageError
from dho_plugin.host import read_image as read_as_host
from dho_plugin.loaders import EpochLoader, Sizes, StepBatches, TestImages, ViewSource
from dho_plugin.views import INTERPOLATIONS, UnreadableImage, ViewPolicy, center_view, read_image

BILINEAR = InterpolationMode.BILINEAR
RED = np.full((30, 40, 3), (200, 40, 10), dtype=np.uint8)


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG of few bytes that says of itself to be of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(width + 1) * 3)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def broken(kind: str, path: Path) -> Path:
    if kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        tiny.write_image(path, np.random.default_rng(0), 0, size=(96, 80))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "bomb":
        png_header(path, 20_000, 20_000)
    elif kind == "thread":
        Image.new("L", (1, 501)).save(path, format="png")
    elif kind == "floats":
        Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(path, format="tiff")
    elif kind == "32 bits":
        Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(path, format="tiff")
    else:
        path.write_bytes(
            {"empty": b"", "page": b"<!DOCTYPE html><html>quota</html>", "half a PNG": b"\x89PNG\r\n"}[kind]
        )
    return path


BROKEN = ["truncated", "empty", "page", "half a PNG", "folder", "bomb", "thread", "floats", "32 bits"]


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named_everywhere(tmp_path, kind):
    path = broken(kind, tmp_path / "broken\n.jpg")
    item = type("Item", (), {"impath": str(path), "label": 0, "domain": 0})
    readers = [
        lambda: read_image(str(path)),
        lambda: read_as_host(str(path)),  # the evaluation of an attached trainer
        lambda: TestImages([item], size=32, interpolation=BILINEAR)[0],
        lambda: source([str(path)], "stop").batch(0, 1),
        lambda: source([str(path)], "skip").batch(0, 1),  # there is no other to take its place
    ]
    for read in readers:
        with pytest.raises(UnreadableImage, match=r"cannot read the image .*broken\\n\.jpg: .+\. Replace"):
            read()
    with pytest.raises(Exception, match=r".") as error:
        predicting.read_view(path, 32, "bilinear")
    assert isinstance(error.value, (OSError, ValueError, SyntaxError, Image.DecompressionBombError))


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some packages set it
    path = png_header(tmp_path / "bomb.png", 20_000, 20_000)
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with pytest.raises(UnreadableImage, match="20000 x 20000 pixels, more than the 178,956,970"):
        read_image(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 50e6


def written(path: Path, kind: str) -> tuple[Path, np.ndarray]:
    """An odd but readable image, and the RGB pixels that it is to be taken for."""
    picture = Image.fromarray(RED)
    grey = np.arange(1200, dtype=np.uint8).reshape(30, 40)
    if kind == "CMYK":
        picture.convert("CMYK").save(path, format="tiff")
        return path, RED
    if kind == "L":
        Image.fromarray(grey).save(path, format="png")
    elif kind == "LA":
        Image.merge("LA", [Image.fromarray(grey), Image.new("L", (40, 30), 7)]).save(path, format="png")
    elif kind == "RGBA":
        picture.putalpha(3)
        picture.save(path, format="png")
        return path, RED
    elif kind == "palette with alpha":
        picture.quantize(2).save(path, format="png", transparency=bytes([0, 128]))
        return path, RED
    elif kind == "16 bits":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path, format="png")
    elif kind == "16 bits, most significant first":
        Image.frombytes("I;16B", (40, 30), (grey.astype(np.uint16) * 257).astype(">u2").tobytes()).save(path, "tiff")
    elif kind == "1 bit":
        grey = np.where(grey > 90, 255, 0).astype(np.uint8)
        Image.fromarray(grey).convert("1", dither=Image.Dither.NONE).save(path, format="png")
    elif kind == "turned by EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(grey).save(path, format="png", exif=exif)
    elif kind.startswith("animated"):
        frames = [Image.fromarray(RED), Image.fromarray(255 - RED)]
        options = {"lossless": True} if kind.endswith("WebP") else {}
        frames[0].save(path, format=kind.split()[1], save_all=True, append_images=frames[1:], **options)
        return path, RED
    return path, np.repeat(grey[..., None], 3, axis=2)


ODD = [
    "CMYK",
    "L",
    "LA",
    "RGBA",
    "palette with alpha",
    "16 bits",
    "16 bits, most significant first",
    "1 bit",
    "turned by EXIF",
    "animated GIF",
    "animated WebP",
]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_odd_images_are_the_same_in_training_evaluation_teacher_and_export(tmp_path, kind):
    path, wanted = written(tmp_path / "odd.jpg", kind)
    image = read_image(str(path))
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), wanted)
    assert np.array_equal(np.asarray(read_as_host(str(path))), wanted)
    view = center_view(image, 32, BILINEAR)
    assert np.array_equal(predicting.read_view(path, 32, "bilinear"), view.numpy())
    whole = ViewSource(
        [str(path)],
        root=str(tmp_path),
        sizes=Sizes(30, 24),
        policy=ViewPolicy(crop=False, flip=False),
        interpolation=BILINEAR,
        seed=0,
        stream=0,
    ).batch(0, 1)
    for key, size in (("img", 30), ("img_teacher", 24)):
        seen = Image.fromarray(wanted).resize((size, size), Image.Resampling.BILINEAR)
        assert np.array_equal(whole[key][0].permute(1, 2, 0).numpy(), np.asarray(seen))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_thin_images_have_views(tmp_path, size):
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "thin.png")
    paths = [str(tmp_path / "thin.png")]
    view = center_view(read_image(paths[0]), 32, BILINEAR)
    assert torch.equal(view, torch.tensor([9, 8, 7], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32))
    assert source(paths, "stop").batch(0, 9)["img"].shape == (9, 3, 16, 16)
    for how in INTERPOLATIONS:
        read_as = predicting.read_view(tmp_path / "thin.png", 32, how)
        assert np.array_equal(read_as, center_view(read_image(paths[0]), 32, INTERPOLATIONS[how]).numpy())


# INPUT.BAD_IMAGES


def source(paths: list[str], bad_images: str, stream: int = 0) -> ViewSource:
    return ViewSource(
        paths,
        root="/",
        sizes=Sizes(16),
        policy=ViewPolicy(),
        interpolation=BILINEAR,
        seed=3,
        stream=stream,
        bad_images=bad_images,
    )


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """Twelve images, the fifth of which is a web page."""
    rng = np.random.default_rng(0)
    for number in range(12):
        tiny.write_image(tmp_path / f"{number}.jpg", rng, number)
    broken("page", tmp_path / "4.jpg")
    return [str(tmp_path / f"{number}.jpg") for number in range(12)]


def test_the_next_image_of_the_order_takes_the_place(paths):
    skipping = source(paths, "skip")
    place = next(position for position in range(12) if skipping.order[position][0] == 4)
    batch = skipping.batch(place, 2)
    following, _ = skipping.order[place + 1]
    assert batch["index"].tolist() == [following, following] and batch["skipped"].tolist() == [4]
    assert torch.equal(batch["img"][0], batch["img"][1])
    assert "skipped" not in skipping.batch(place + 1, 3)
    good = source([p for p in paths if "4.jpg" not in p], "skip").batch(0, 3)
    assert set(good) == {"img", "index"}


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_across_workers_and_steps_stay_what_they_are(paths, workers, capsys):
    def steps(start: int) -> list[dict]:
        batches = StepBatches(source(paths, "skip"), list(range(12)), 4, source(paths[:6], "skip", 1), 5)
        loader = EpochLoader(batches, steps=3, workers=workers, pin_memory=False)
        loader.set_epoch(start)
        found = list(loader)
        assert batches.unreadable() == [paths[4]]
        assert all("skipped" not in batch and "skipped" not in batch["unlabeled"] for batch in found)
        return found

    first, again = steps(1), steps(1)
    alone = StepBatches(source(paths, "skip"), list(range(12)), 4, source(paths[:6], "skip", 1), 5)
    for step, (one, other) in enumerate(zip(first, again, strict=True), start=3):
        assert torch.equal(one["img"], other["img"]) and torch.equal(one["img"], alone[step]["img"])
        assert torch.equal(one["label"], one["index"]) and 4 not in one["label"]
    said = [line for line in capsys.readouterr().out.splitlines() if "4.jpg" in line]
    assert len(said) == 4  # by each of two loaders once for the labelled and once for the unlabelled set


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_file_in_a_thousand_stop_the_run(paths, workers):
    broken("empty", Path(paths[7]))
    assert [source(paths * n, "skip").allowed for n in (1, 200, 20_000)] == [1, 2, 100]
    batches = StepBatches(source(paths, "skip"), [0] * 12, 2, None, 0)  # both are never in one batch alone
    with pytest.raises(UnreadableImage, match=r"^2 of 12 images cannot be read \(\S*4\.jpg, \S*7\.jpg\)") as error:
        list(EpochLoader(batches, steps=6, workers=workers, pin_memory=False))
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_default_stops_at_the_first_file(paths, workers):
    batches = StepBatches(source(paths, "stop"), [0] * 12, 4, None, 0)
    with pytest.raises(UnreadableImage, match=r"^cannot read the image \S*4\.jpg: ") as error:
        list(EpochLoader(batches, steps=3, workers=workers, pin_memory=False))
    assert "Traceback" not in str(error.value)


@pytest.fixture
def damaged(workspace, tmp_path) -> Path:
    root = tmp_path / "damaged"
    shutil.copytree(workspace, root)
    return root


def test_a_run_with_a_bad_unlabelled_image(damaged, tmp_path, capsys):
    trainer = runs.make(damaged, "CoOpDHO", tmp_path / "x")
    bad = trainer.unlabeled_paths()[0]
    Path(bad).write_bytes(b"<html>")
    options = "TRAINER.DHO.STEPS_PER_EPOCH 6"
    with pytest.raises(UnreadableImage, match=Path(bad).name):
        runs.run(damaged, "CoOpDHO", tmp_path / "a", "", options)
    row = runs.run(damaged, "CoOpDHO", tmp_path / "a", "", f"{options} INPUT.BAD_IMAGES skip")
    assert "1 images could not be read" in capsys.readouterr().out
    assert list(row) == ["test"]


def test_an_evaluation_is_never_over_a_part_of_the_test_set(damaged, tmp_path):
    runs.run(damaged, "LinearProbe", tmp_path / "a")
    next((damaged / "imagenet/images/val").rglob("*.JPEG")).write_bytes(b"")
    flags = f"--eval-only --model-dir {tmp_path / 'a'}"
    for workers in (0, 1):
        with pytest.raises(UnreadableImage, match=r"^cannot read") as error:
            options = f"INPUT.BAD_IMAGES skip DATALOADER.NUM_WORKERS {workers}"
            runs.run(damaged, "LinearProbe", tmp_path / "b", flags, options)
        assert "Traceback" not in str(error.value)


def test_a_misspelt_policy_is_refused(workspace, tmp_path):
    with pytest.raises(UsageError, match=r"INPUT.BAD_IMAGES 'skp'.*Did you mean 'skip'"):
        runs.make(workspace, "LinearProbe", tmp_path, "", "INPUT.BAD_IMAGES skp")


def test_a_cache_of_shots_passes_over_a_file_and_says_so(damaged, tmp_path):
    options = "TRAINER.TIPADAPTER.CHOOSE fixed INPUT.BAD_IMAGES skip"
    bad = runs.make(damaged, "TipAdapter", tmp_path / "x").dm.dataset.train_x[0].impath
    Path(bad).write_bytes(b"")
    runs.run(damaged, "TipAdapter", tmp_path / "a", "", options)
    assert manifest.read(tmp_path / "a")["skipped"] == [bad]
