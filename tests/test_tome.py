"""Token merging against a slow reference, and the properties that it must keep."""

from __future__ import annotations

import pytest
import reference
import tiny
import torch

from dho_plugin.errors import UsageError
from dho_plugin.tome import Matching, TokenMergingVLM, match, merge, proportional_attention
from dho_plugin.towers import ImageEncoder
from dho_plugin.vlm import load_vlm

LAYERS = 3
VIT = {**tiny.VIT, "layers": LAYERS, "head_width": 32}
PATCHES = 16


def load(folder, vision: dict):
    return load_vlm(str(tiny.save_self_describing(folder / "v.safetensors", tiny.tiny_clip(vision), vision)))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """Three image layers of two heads, 16 patches; float64, so that the reference must agree to many digits."""
    return load(tmp_path_factory.mktemp("w"), VIT).double()


def pictures(n: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def slow(vlm, images, prompts, r):
    state = dict(vlm.model.state_dict())
    return [reference.merged_image(image, prompts, state, LAYERS, heads=2, r=r) for image in images]


@pytest.mark.parametrize("r", [1, 3, 7, 100])
def test_features_and_gradients_against_loops_over_tokens(vlm, r):
    images = pictures().requires_grad_()
    merging = TokenMergingVLM(vlm, r)
    ours = merging.encode_image(images)
    expected = torch.stack([feature for feature, _ in slow(vlm, images, [], r)])
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine, other = (torch.autograd.grad((out * weights).sum(), images)[0] for out in (ours, expected))
    torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-8)
    assert not torch.allclose(ours, vlm.encode_image(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("depths", [(1,), (3, 2)], ids=str)
def test_visual_prompts_are_kept_and_replaced_in_deeper_layers(vlm, depths):
    generator = torch.Generator().manual_seed(1)
    width = vlm.image_token_width
    prompts = [
        torch.randn(depth, 2 + i, width, generator=generator, dtype=torch.float64).requires_grad_()
        for i, depth in enumerate(depths)
    ]
    images = pictures()
    ours = TokenMergingVLM(vlm, 4).encode_image(images, prompts)
    expected = torch.stack([feature for feature, _ in slow(vlm, images, prompts, 4)])
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)
    pairs = zip(*(torch.autograd.grad(out.pow(2).sum(), prompts) for out in (ours, expected)), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-8)


def test_without_a_token_to_merge_prompted_features_are_the_models_own(tmp_path):
    """One patch has no partner; the tower is then run by our own loop, to the model's own result."""
    vision = {**tiny.VIT, "patch_size": 32}
    vlm = load(tmp_path, vision).double()
    prompts = [torch.randn(2, 3, vlm.image_token_width, dtype=torch.float64)]
    for given in ([], prompts):
        ours = TokenMergingVLM(vlm, 5).encode_image(pictures(), given)
        torch.testing.assert_close(ours, vlm.encode_image(pictures(), given), rtol=1e-10, atol=1e-10)


def test_r_0_is_the_untouched_model_bit_for_bit(vlm):
    images = pictures(3)
    prompts = [torch.randn(2, 3, vlm.image_token_width, dtype=torch.float64)]
    merging = TokenMergingVLM(vlm, 0)
    assert torch.equal(merging.encode_image(images), vlm.encode_image(images))
    assert torch.equal(merging.encode_image(images, prompts), vlm.encode_image(images, prompts))
    assert torch.equal(ImageEncoder(merging)(images), ImageEncoder(vlm)(images))
    tokens = vlm.tokenize(["a crane"])
    ours = TokenMergingVLM(vlm, 3).encode_text_embeddings(vlm.embed_tokens(tokens).double(), tokens.argmax(-1))
    assert torch.equal(ours, vlm.encode_text_embeddings(vlm.embed_tokens(tokens).double(), tokens.argmax(-1)))


@pytest.mark.parametrize(("r", "left"), [(1, 13), (3, 7), (5, 3), (8, 2), (1000, 2)])
def test_r_tokens_a_layer_go_and_at_most_half_of_those_that_can(vlm, r, left):
    """16 patches, 3 layers: r = 5 goes 16, 11, 6, 3, since half of 6 is 3."""
    tokens, sizes = TokenMergingVLM(vlm, r).merged_tokens(pictures())
    assert tokens.shape[:2] == sizes.shape == (2, 1 + left)
    assert torch.equal(sizes.sum(dim=1), torch.full((2,), 1.0 + PATCHES, dtype=sizes.dtype))
    assert torch.equal(sizes[:, 0], torch.ones(2, dtype=sizes.dtype)), "the class token merges with nothing"
    expected = [[size for _, size, _ in after] for _, after in slow(vlm, pictures(), [], r)]
    assert torch.equal(sizes, torch.tensor(expected, dtype=sizes.dtype))


def test_images_of_a_batch_do_not_see_each_other(vlm):
    images, order = pictures(5), torch.tensor([3, 0, 4, 1, 2])
    merging = TokenMergingVLM(vlm, 4)
    features = merging.encode_image(images)
    torch.testing.assert_close(merging.encode_image(images[order]), features[order], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(merging.encode_image(images[2:3]), features[2:3], rtol=1e-10, atol=1e-10)


def test_matching_by_hand():
    """Position 0 never merges; set B is 1, 3, 5 and set A is 2, 4: the angles say who is near whom."""
    angles = torch.tensor([[10.0, 0.0, 85.0, 90.0, 12.0, 45.0]]).deg2rad()
    lengths = torch.tensor([1.0, 9.0, 2.0, 1.0, 5.0, 0.1])  # cosine similarity does not see them
    keys = torch.stack([angles.cos(), angles.sin()], dim=-1) * lengths[None, :, None]
    one = match(keys, 1, fixed=1)
    assert (one.source.tolist(), one.target.tolist(), one.kept.tolist()) == ([[2]], [[3]], [[0, 4, 1, 3, 5]])
    two = match(keys, 2, fixed=1)
    assert (two.source.tolist(), two.target.tolist(), two.kept.tolist()) == ([[2, 4]], [[3, 1]], [[0, 1, 3, 5]])
    assert match(keys, 0, fixed=1).kept.tolist() == [[0, 2, 4, 1, 3, 5]]


def test_merging_by_hand():
    """Two tokens of sizes 1 and 2 go into one of size 3."""
    x, sizes = torch.tensor([[[1.0], [5.0], [60.0], [0.0], [30.0]]]), torch.tensor([[1.0, 4.0, 1.0, 3.0, 2.0]])
    kept = torch.tensor([[0, 1, 3]])
    merged, totals = merge(x, sizes, Matching(torch.tensor([[2, 4]]), torch.tensor([[3, 3]]), kept))
    torch.testing.assert_close(merged, torch.tensor([[[1.0], [5.0], [(60.0 + 2 * 30.0) / 6]]]))
    assert totals.tolist() == [[1.0, 4.0, 6.0]]


def test_a_token_of_size_three_counts_as_three_equal_tokens():
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    torch.nn.init.normal_(attention.in_proj_bias)
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    ours, keys = proportional_attention(attention, x, torch.tensor([1.0, 3.0, 1.0, 2.0]).expand(2, -1))
    repeated = x[:, [0, 1, 1, 1, 2, 3, 3]]
    expected = attention(repeated, repeated, repeated, need_weights=False)[0][:, [0, 1, 4, 5]]
    torch.testing.assert_close(ours, expected)
    all_keys = x @ attention.in_proj_weight[8:16].T + attention.in_proj_bias[8:16]
    torch.testing.assert_close(keys, (all_keys[..., :4] + all_keys[..., 4:]) / 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_in_every_precision(tmp_path, dtype, tolerance):
    exact = load(tmp_path, VIT).double()
    rounded = load(tmp_path, VIT).to(dtype)
    features = TokenMergingVLM(rounded, 8).encode_image(pictures())  # every token of A merges: no edge is near a tie
    assert features.dtype == dtype
    sizes = TokenMergingVLM(rounded, 8).merged_tokens(pictures())[1]
    assert sizes.dtype == torch.float32, "bfloat16 counts no further than 256"
    expected = TokenMergingVLM(exact, 8).encode_image(pictures())
    error = (features.double() - expected).norm() / expected.norm()
    assert error < tolerance


def test_under_autocast(tmp_path):
    vlm = load(tmp_path, VIT)
    with torch.no_grad():
        expected = TokenMergingVLM(vlm, 8).encode_image(pictures())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = TokenMergingVLM(vlm, 8).encode_image(pictures())
    assert features.dtype == torch.bfloat16
    assert (features - expected).norm() / expected.norm() < 1e-1


def test_a_mean_of_many_large_tokens_fits_half_precision():
    x = torch.full((1, 40, 1), 4000.0, dtype=torch.float16)
    source, target = torch.arange(1, 40)[None], torch.zeros(1, 39, dtype=torch.long)
    merged, totals = merge(x, torch.ones(1, 40), Matching(source, target, torch.zeros(1, 1, dtype=torch.long)))
    assert float(merged) == pytest.approx(4000, rel=1e-2) and float(totals) == 40


def test_the_model_is_left_as_it_was(vlm):
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    images = pictures()
    features = vlm.encode_image(images)
    TokenMergingVLM(vlm, 3).encode_image(images)
    assert all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())
    assert torch.equal(vlm.encode_image(images), features)


def test_what_cannot_merge_says_so(vlm, tmp_path):
    with pytest.raises(UsageError, match="r = -1"):
        TokenMergingVLM(vlm, -1)
    resnet = load(tmp_path, tiny.RESNET)
    with pytest.raises(UsageError, match=r"plain ViT.*ModifiedResNet.*r = 0"):
        TokenMergingVLM(resnet, 2)
    images = pictures(2, size=64)
    assert torch.equal(TokenMergingVLM(resnet, 0).encode_image(images), resnet.encode_image(images))
