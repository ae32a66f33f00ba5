"""INPUT.READER: who decodes and resizes changes rounding at most; boxes, refusals and passed-over files stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from PIL import Image
from test_bad_images import BROKEN, ODD, broken, written
from torchvision.transforms import InterpolationMode

from dho_plugin import readers
from dho_plugin.errors import UsageError
from dho_plugin.loaders import EpochLoader, Sizes, StepBatches, ViewSource
from dho_plugin.readers import CPU, READERS, Reader, check_reader, cut_pixels, recipe
from dho_plugin.saved import read_checkpoint
from dho_plugin.views import INTERPOLATIONS, UnreadableImage, View, ViewPolicy, read_image, render

BICUBIC = InterpolationMode.BICUBIC
PLAIN = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "coarse": {"quality": 20},
    "with EXIF": {"exif": Image.Exif()},
    "grey": {},
}
PLAIN["with EXIF"]["exif"][0x0112] = 6  # a turn that no reader takes


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as photographs have them."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)).resize((width, height), 3)
    noisy = np.asarray(smooth) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def source(paths: list[str], reader: str, **keywords) -> ViewSource:
    given = {"sizes": Sizes(32, 48), "policy": ViewPolicy(), "interpolation": BICUBIC, "seed": 3, "stream": 0}
    return ViewSource(paths, root="/", reader=reader, **{**given, **keywords})


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    """Twelve JPEGs of several kinds and sizes, and a PNG."""
    folder = tmp_path_factory.mktemp("images")
    for number, options in enumerate([*PLAIN.values()] * 2):
        picture(120 + 13 * number, 150 - 7 * number, number).save(folder / f"{number}.jpg", **options)
    picture(90, 80).save(folder / "a.png")
    return [str(path) for path in sorted(folder.iterdir())]


# Pixels


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("size", [(97, 75), (16, 33)])
def test_a_plain_jpeg_has_pillows_pixels(tmp_path, kind, size):
    path = tmp_path / "a.jpg"
    picture(*size).convert("L" if kind == "grey" else "RGB").save(path, **PLAIN[kind])
    found = Reader("tensor", BICUBIC).open(path)
    assert (found.width, found.height) == size
    assert torch.equal(found.content, pixels(read_image(path)))
    assert Reader("cuda", BICUBIC).open(path).content.tolist() == list(path.read_bytes())


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [24, 224])
def test_resized_views_are_pillows_but_for_the_rounding(how, size):
    image, view = picture(500, 375), View(31, 17, 400, 310, True)
    ours = cut_pixels(pixels(image), view, size, INTERPOLATIONS[how]).int()
    apart = (ours - render(image, view, size, INTERPOLATIONS[how]).int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.02


def test_nearest_views_are_pillows():
    image, view = picture(50, 37), View(3, 1, 41, 30, False)
    for size in (16, 41, 90):
        ours = cut_pixels(pixels(image), view, size, InterpolationMode.NEAREST)
        assert torch.equal(ours, render(image, view, size, InterpolationMode.NEAREST))


def test_every_reader_cuts_the_same_boxes(paths):
    expected = source(paths, "pil").batch(5, 20)
    for reader in ("tensor", "cuda"):
        found = source(paths, reader)
        found = found.receive(found.batch(5, 20))
        assert set(found) == set(expected) and torch.equal(found["index"], expected["index"])
        for key in ("img", "img_teacher"):
            assert (found[key].int() - expected[key].int()).abs().max() <= 2
            assert found[key].dtype == torch.uint8 and found[key].is_contiguous()


def test_views_keep_their_numbers_and_the_teachers_is_not_made_where_it_is_stored(paths):
    for reader in READERS:
        one = source(paths, reader)
        one.numbers, one.sizes = np.arange(3 * len(paths)).reshape(3, -1), Sizes(one.sizes.student)
        batch = one.receive(one.batch(0, 9))
        assert set(batch) == {"img", "index", "view"} and len(batch["img"]) == 9
        positions = [one.order[position] for position in range(9)]
        assert batch["view"].tolist() == [pass_ * len(paths) + index for index, pass_ in positions]


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_gpu_cuda_has_the_tensors_pixels_whoever_makes_the_batch(paths, workers):
    def steps(reader: str) -> list[dict]:
        batches = StepBatches(source(paths, reader), [1] * len(paths), 3, source(paths[:5], reader, stream=1), 4)
        return list(EpochLoader(batches, steps=2, workers=workers, pin_memory=False))

    for ours, theirs in zip(steps("cuda"), steps("tensor"), strict=True):
        assert set(ours) == set(theirs) and set(ours["unlabeled"]) == set(theirs["unlabeled"])
        for key in ("img", "img_teacher"):
            assert torch.equal(ours[key], theirs[key])
            assert torch.equal(ours["unlabeled"][key], theirs["unlabeled"][key])


def test_one_file_is_decoded_once_for_both_sizes(paths, monkeypatch):
    decoded, plain = [], readers._decode
    monkeypatch.setattr(readers, "_decode", lambda content: decoded.append(1) or plain(content))
    for reader in ("tensor", "cuda"):
        one = source(paths[:5], reader)
        one.receive(one.batch(0, 5))
        assert len(decoded) == 5
        decoded.clear()


# Files that are not plain


@pytest.mark.parametrize("reader", ["tensor", "cuda"])
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_odd_images_are_read_as_pillow_does(tmp_path, kind, reader):
    path, wanted = written(tmp_path / "odd.jpg", kind)
    found = Reader(reader, BICUBIC).open(path)
    assert torch.equal(found.content, torch.from_numpy(wanted).permute(2, 0, 1))


@pytest.mark.parametrize("reader", ["tensor", "cuda"])
def test_a_jpeg_for_print_is_read_as_pillow_does(tmp_path, reader):
    picture(40, 30).convert("CMYK").save(tmp_path / "a.jpg")
    assert torch.equal(Reader(reader, BICUBIC).open(tmp_path / "a.jpg").content, pixels(read_image(tmp_path / "a.jpg")))


@pytest.mark.parametrize("reader", ["tensor", "cuda"])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named(tmp_path, kind, reader):
    path = broken(kind, tmp_path / "broken\n.jpg")
    with pytest.raises(UnreadableImage, match=r"cannot read the image .*broken\\n\.jpg: .+\. Replace"):
        source([str(path)], reader).batch(0, 1)


@pytest.mark.parametrize("reader", ["tensor", "cuda"])
@pytest.mark.parametrize(("width", "height", "why"), [(20_000, 20_000, "178,956,970"), (1, 501, "500 times as long")])
def test_a_jpeg_that_says_it_is_huge_or_a_thread_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch, reader, width, height, why
):
    path = tmp_path / "bomb.jpg"
    picture(40, 30).save(path)
    content = path.read_bytes()
    said, claimed = (h.to_bytes(2, "big") + w.to_bytes(2, "big") for w, h in ((40, 30), (width, height)))
    assert content.count(b"\xff\xc0\x00\x11\x08" + said) == 1
    path.write_bytes(content.replace(b"\x08" + said, b"\x08" + claimed))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(readers, "_decode", lambda content: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match=why):
        Reader(reader, BICUBIC).open(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_read_or_refused_as_by_pillow(tmp_path, progressive):
    path = tmp_path / "whole.jpg"
    picture(64, 48).save(path, progressive=progressive)
    content, half = path.read_bytes(), tmp_path / "half.jpg"
    for length in range(2, len(content), 97):
        for end in (b"", b"\xff\xd9"):
            half.write_bytes(content[:length] + end)
            try:
                expected = pixels(read_image(half))
            except UnreadableImage:
                with pytest.raises(UnreadableImage, match=r"half\.jpg"):
                    Reader("tensor", BICUBIC).open(half)
            else:
                assert torch.equal(Reader("tensor", BICUBIC).open(half).content, expected)


@pytest.mark.parametrize("reader", ["tensor", "cuda"])
def test_a_cut_file_is_passed_over(paths, tmp_path, reader):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(Path(paths[0]).read_bytes()[:-400])
    skipping = source([*paths, str(cut)], reader, bad_images="skip")
    batches = StepBatches(skipping, [0] * (len(paths) + 1), len(paths) + 1, None, 0)
    loader = EpochLoader(batches, steps=1, workers=1, pin_memory=False)
    assert [len(batch["img"]) for batch in loader] == [len(paths) + 1]
    assert batches.unreadable() == [str(cut)]


def test_a_file_that_the_gpus_decoder_refuses_is_decoded_otherwise(paths, monkeypatch):
    expected = source(paths, "tensor").batch(0, 13)["img"]
    whole, refused = readers._decode_all, Path(paths[4]).stat().st_size

    def decode_all(contents, device):
        if any(len(content) == refused for content in contents):
            raise RuntimeError("nvjpeg: not supported")
        return whole(contents, device)

    monkeypatch.setattr(readers, "_decode_all", decode_all)
    one = source(paths, "cuda")
    assert torch.equal(one.receive(one.batch(0, 13))["img"], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_views_from_the_gpu(paths):
    check_reader("cuda", torch.device("cuda"))
    expected = source(paths, "pil").batch(0, 13)
    one = source(paths, "cuda", device=torch.device("cuda"))
    found = one.receive(one.batch(0, 13))
    for key in ("img", "img_teacher"):
        assert found[key].is_cuda and (found[key].cpu().int() - expected[key].int()).abs().float().mean() < 3


# The choice


def test_a_torchvision_without_its_decoder_is_said_before_the_run(monkeypatch):
    for reader in READERS:
        check_reader(reader, CPU)
    monkeypatch.delattr(readers.torchvision.io, "decode_jpeg")
    check_reader("pil", CPU)
    for reader in ("tensor", "cuda"):
        with pytest.raises(UsageError, match=rf"INPUT.READER {reader}: torchvision .* decodes no JPEG .*take pil"):
            check_reader(reader, CPU)


def test_a_misspelt_reader_is_refused(workspace, tmp_path):
    with pytest.raises(UsageError, match=r"INPUT.READER 'tensors'.*Did you mean 'tensor'"):
        runs.make(workspace, "LinearProbe", tmp_path, "", "INPUT.READER tensors")


def test_the_name_of_the_pixels():
    gpu = torch.device("cuda")
    assert [recipe("bicubic", reader, CPU) for reader in READERS] == ["bicubic", *["bicubic, tensor"] * 2]
    assert [recipe("bicubic", reader, gpu) for reader in READERS] == ["bicubic", "bicubic, tensor", "bicubic, cuda"]


def test_runs(workspace, tmp_path):
    def weights(reader: str, options: str = "") -> torch.Tensor:
        out = tmp_path / f"{reader}{bool(options)}"
        assert list(runs.run(workspace, "LinearProbeDHO", out, "", f"INPUT.READER {reader} {options}")) == ["test"]
        return read_checkpoint(out, "kd_head", 2)["state_dict"]["head.weight"]

    pil, tensor, cuda = map(weights, READERS)
    assert torch.equal(tensor, cuda)
    assert not torch.equal(pil, tensor)
    torch.testing.assert_close(pil, tensor, rtol=0, atol=2e-3)
    for reader in READERS:  # a store never gives one reader's pixels to another; teacher and student have one each
        stored = weights(reader, f"STORE.DIR {tmp_path}/store")
        torch.testing.assert_close(stored, pil if reader == "pil" else tensor, rtol=0, atol=1e-6)
    assert len(list((tmp_path / "store").glob("*/store.json"))) == 4
