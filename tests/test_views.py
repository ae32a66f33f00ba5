from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from dho_plugin.errors import UsageError
from dho_plugin.hashing import hash64, uniform
from dho_plugin.views import (
    Order,
    UnreadableImage,
    View,
    ViewPolicy,
    center_view,
    draw_view,
    draw_views,
    image_key,
    image_size,
    permutation,
    read_image,
    render,
)

BICUBIC = InterpolationMode.BICUBIC


def picture(width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def slow_hash(*words: int) -> int:
    """SplitMix64's finaliser over the words, in Python integers."""
    mask, state = 2**64 - 1, 0
    for word in words:
        state ^= (word + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_hash_equals_its_integer_definition_and_broadcasts():
    words = (1, 2**63 + 5, 0)
    assert int(hash64(*words)) == slow_hash(*words)
    assert hash64(7, np.arange(4)).tolist() == [slow_hash(7, i) for i in range(4)]


def test_uniform_is_uniform():
    values = uniform(3, np.arange(20000))
    assert values.min() >= 0 and values.max() < 1
    assert np.histogram(values, bins=10, range=(0, 1))[0] == pytest.approx(2000, abs=200)


def test_permutation_depends_on_each_argument_and_on_nothing_else():
    base = permutation(100, seed=1, stream=0, pass_=0)
    assert sorted(base) == list(range(100))
    torch.manual_seed(5)
    np.random.seed(5)
    assert (permutation(100, seed=1, stream=0, pass_=0) == base).all()
    for other in ({"seed": 2}, {"stream": 1}, {"pass_": 1}):
        assert (permutation(100, **{"seed": 1, "stream": 0, "pass_": 0, **other}) != base).any()


def test_order_visits_every_image_once_a_pass_and_has_random_access():
    order = Order(5, seed=0, stream=0)
    visits = [order[position] for position in range(20)]
    for pass_ in range(4):
        assert sorted(index for index, p in visits if p == pass_) == list(range(5))
    assert Order(5, seed=0, stream=0)[17] == visits[17]
    assert [index for index, _ in visits[:5]] != [index for index, _ in visits[5:10]]


def test_empty_order_is_an_error():
    with pytest.raises(UsageError, match="empty"):
        Order(0, seed=0, stream=0)


def test_views_obey_the_policy():
    policy = ViewPolicy(scale=(0.5, 1.0))
    views = [draw_view(60, 45, policy, seed=1, key=9, pass_=p) for p in range(400)]
    for view in views:
        assert view.left >= 0 and view.left + view.width <= 60
        assert view.top >= 0 and view.top + view.height <= 45
        assert 0.45 <= view.width * view.height / (60 * 45) <= 1.0
        assert 0.7 <= view.width / view.height <= 1.38
    assert 140 < sum(view.flip for view in views) < 260
    assert len({view[:4] for view in views}) > 300


def test_views_depend_on_seed_image_and_pass_alone():
    arguments = {"seed": 1, "key": 2, "pass_": 3}
    view = draw_view(60, 45, ViewPolicy(), **arguments)
    assert draw_view(60, 45, ViewPolicy(), **arguments) == view
    for name in arguments:
        assert draw_view(60, 45, ViewPolicy(), **{**arguments, name: 11}) != view


def test_without_crop_and_flip_the_view_is_the_image():
    assert draw_view(60, 45, ViewPolicy(crop=False, flip=False), seed=1, key=2, pass_=3) == View(0, 0, 60, 45, False)


def test_narrow_images_get_the_central_box_of_an_allowed_aspect():
    view = draw_view(300, 3, ViewPolicy(scale=(1.0, 1.0)), seed=0, key=0, pass_=0)
    assert (view.left, view.top, view.width, view.height) == (148, 0, 4, 3)


@pytest.mark.parametrize("flip", [False, True])
def test_render_is_torchvisions_crop_resize_and_flip(flip):
    image = picture()
    ours = render(image, View(4, 6, 30, 20, flip), 24, BICUBIC)
    expected = TF.pil_to_tensor(TF.resized_crop(image, 6, 4, 20, 30, [24, 24], BICUBIC))
    assert torch.equal(ours, expected.flip(-1) if flip else expected)
    assert ours.dtype == torch.uint8


def test_two_sizes_show_the_same_crop():
    smooth = Image.fromarray(np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8) * 2).convert("RGB")
    view = View(5, 3, 40, 32, True)
    small, large = (render(smooth, view, size, BICUBIC).float() for size in (16, 32))
    shrunk = torch.nn.functional.interpolate(large[None], size=16, mode="bilinear", antialias=True)[0]
    assert (small - shrunk).abs().mean() < 1.5


def test_center_view_is_dassls_test_transform():
    image = picture(61, 40)
    expected = TF.pil_to_tensor(TF.center_crop(TF.resize(image, 32, BICUBIC), [32, 32]))
    assert torch.equal(center_view(image, 32, BICUBIC), expected)


def test_image_key_survives_a_move_of_the_root(tmp_path):
    key = image_key(tmp_path / "a" / "x.png", tmp_path)
    assert key == image_key("/elsewhere/a/x.png", "/elsewhere")
    assert key != image_key(tmp_path / "b" / "x.png", tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>not an image</html>"])
def test_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.jpg"):
        read_image(str(path))


POLICIES = [ViewPolicy(), ViewPolicy(scale=(0.08, 1.0)), ViewPolicy(crop=False), ViewPolicy(flip=False)]


@pytest.mark.parametrize("policy", POLICIES)
def test_many_views_at_once_are_those_of_each_image_alone(policy):
    rng = np.random.default_rng(0)
    sizes, passes = rng.integers(1, 600, (2, 300)), rng.integers(0, 9, 300)
    keys = rng.integers(0, 2**63, 300).astype(np.uint64) * np.uint64(2) + np.uint64(1)
    many = draw_views(*sizes, policy, seed=3, keys=keys, passes=passes)
    each = zip(many.tolist(), *sizes.tolist(), keys.tolist(), passes.tolist(), strict=True)
    for row, width, height, key, pass_ in each:
        assert View(*row) == draw_view(width, height, policy, seed=3, key=key, pass_=pass_)


def test_a_span_of_the_order_is_its_positions():
    for size in (1, 3, 20):
        order = Order(size, seed=1, stream=0)
        for start in (0, 1, 19, 41):
            for count in (0, 1, 4, 45):
                pairs = zip(*(part.tolist() for part in order.span(start, count)), strict=True)
                assert list(pairs) == [order[position] for position in range(start, start + count)]


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/a//b/./c.jpg", "/a"),
        ("a/b.jpg", "."),
        ("/a/../b.jpg", "/a"),
        ("c.jpg", "/x"),
        ("/c.jpg", "/"),
        ("~/b.jpg", "~"),
    ],
)
def test_image_keys_know_names_as_pathlib_does(path, root):
    try:
        name = Path(path).absolute().relative_to(Path(root).expanduser().absolute()).as_posix()
    except ValueError:
        name = Path(path).name
    assert image_key(path, root) == int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def test_the_size_of_an_image_is_that_of_its_pixels(tmp_path):
    for suffix, mode in ((".jpg", "L"), (".png", "RGBA"), (".gif", "P"), (".tif", "I;16")):
        path = tmp_path / f"image{suffix}"
        Image.new(mode, (13, 7)).save(path)
        assert image_size(path) == read_image(path).size == (13, 7)
    (tmp_path / "no.jpg").write_text("no")
    with pytest.raises(UnreadableImage, match=r"no\.jpg"):
        image_size(tmp_path / "no.jpg")
