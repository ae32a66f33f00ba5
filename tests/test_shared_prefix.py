"""Text encoding with the shared tokens computed once, against every prompt run whole."""

from __future__ import annotations

import pytest
import reference
import tiny
import torch

from dho_plugin.cascade import BoostedVLM, BoostingPrompts
from dho_plugin.classes import ClassList
from dho_plugin.layers import run_blocks
from dho_plugin.prompts import PromptLearner
from dho_plugin.shared_prefix import can_share, remembered, run_shared
from dho_plugin.vlm import load_vlm

NAMES = ("tench", "tank suit", "crane", "american staffordshire bull terrier", "ox")
CLASSES = ClassList(NAMES, NAMES)
POSITIONS = [
    {"position": "end"},
    {"position": "end", "depth": 2},
    {"position": "middle"},
    {"position": "front"},
    {"position": "end", "class_specific": True},
    {"position": "middle", "class_specific": True},
]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """Three layers of two heads, float64."""
    text = {**tiny.TEXT, "layers": 3, "heads": 2}
    path = tmp_path_factory.mktemp("w") / "a.safetensors"
    torch.manual_seed(0)
    model = tiny.open_clip.CLIP(embed_dim=32, vision_cfg=dict(tiny.VIT), text_cfg=text, quick_gelu=True)
    return load_vlm(str(tiny.save_self_describing(path, model, text=text))).double()


def whole(vlm, prompts, end, deep):
    """All tokens of all prompts, and then more of them behind the end, which nothing must see."""
    state = dict(vlm.model.state_dict())
    return torch.stack(
        [
            reference.prompted_text(row, int(at), list(deep), state, 3, heads=2)
            for row, at in zip(prompts, end, strict=True)
        ]
    )


def gradients(features, parameters):
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((features * weights).sum(), parameters)


@pytest.mark.parametrize("options", POSITIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("n_ctx", [1, 4])
def test_features_and_gradients_are_those_of_whole_prompts(vlm, options, n_ctx):
    learner = PromptLearner(vlm, CLASSES, n_ctx=n_ctx, **options).double()
    generic = not options.get("class_specific")
    assert learner.shared == 1 + generic * {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[options["position"]]
    parameters = list(learner.parameters())
    prompts, end, deep, shared = learner()
    slow = whole(vlm, prompts, end, deep)
    expected = gradients(slow, parameters)
    for few in range(1, shared + 1):  # less than all that is shared is right as well
        prompts, end, deep, _ = learner()
        ours = vlm.encode_text_embeddings(prompts, end, deep, few)
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-10)
        for mine, other in zip(gradients(ours, parameters), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("order", ["boosting_first", "adapting_first"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_behind_boosting_prompts_of_a_cascade(vlm, order, class_specific):
    sizes = {"n_text": 2, "n_visual": 1, "depth_text": 2, "depth_visual": 1}
    boosting = BoostingPrompts(vlm, **sizes, ctx_init="", seed=3).double()
    learner = PromptLearner(vlm, CLASSES, n_ctx=3, class_specific=class_specific).double()
    prompts, end, deep, shared = learner()
    seen = []
    boosted = BoostedVLM(vlm, boosting, text_order=order)
    encode = vlm.encode_text_embeddings
    vlm.encode_text_embeddings = lambda *given: seen.append(given) or encode(*given)
    try:
        ours = boosted.encode_text_embeddings(prompts, end, deep, shared)
    finally:
        del vlm.encode_text_embeddings
    tokens, ends, blocks, alike = seen[0]
    first_differs = (tokens != tokens[0]).any(dim=-1).any(dim=0).nonzero()[0, 0]
    assert alike == (first_differs if not class_specific or order == "boosting_first" else 1)
    slow = whole(vlm, tokens, ends, blocks)
    torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-10)
    parameters = [learner.ctx, *boosting.parameters()][:3]
    for mine, other in zip(*(gradients(out, parameters) for out in (ours, slow)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


def test_shared_tokens_run_once_and_the_last_layer_for_end_tokens_alone(vlm):
    learner = PromptLearner(vlm, CLASSES, n_ctx=4).double()
    rows = []
    blocks = vlm.model.transformer.resblocks
    hooks = [block.mlp.register_forward_hook(lambda m, x, y: rows.append(x[0].shape[0])) for block in blocks]
    vlm.encode_text_embeddings(*learner())
    for hook in hooks:
        hook.remove()
    own = sum(vlm.num_tokens(name) + 2 for name in NAMES)  # the name, the full stop and the end token
    assert rows == [1 + 4 + own, 1 + 4 + own, len(NAMES)]


def test_attention_leaves_nothing_but_its_projections_for_the_gradient(vlm):
    learner = PromptLearner(vlm, CLASSES, n_ctx=4).double()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        vlm.encode_text_embeddings(*learner())
    longest = max(vlm.num_tokens(name) for name in NAMES) + 2
    assert (len(NAMES) * longest, 3 * 64) not in kept
    assert not [shape for shape in kept if len(shape) > 3]


def test_a_tower_that_cannot_be_taken_apart_runs_whole(vlm):
    class Other(torch.nn.MultiheadAttention):
        pass

    learner = PromptLearner(vlm, CLASSES, n_ctx=4, depth=2).double()
    expected = vlm.encode_text_embeddings(*learner())
    layer = vlm.model.transformer.resblocks[1].attn
    layer.__class__ = Other
    try:
        assert not can_share(vlm.model.transformer, 5, ())
        torch.testing.assert_close(vlm.encode_text_embeddings(*learner()), expected, rtol=1e-9, atol=1e-10)
    finally:
        layer.__class__ = torch.nn.MultiheadAttention


def test_nothing_behind_the_end_token_is_read(vlm):
    prompts, end, deep, shared = PromptLearner(vlm, CLASSES, n_ctx=2).double()()
    longer = torch.cat([prompts, torch.full_like(prompts[:, :3], torch.nan)], dim=1)
    transformer = vlm.model.transformer
    found = run_shared(transformer, longer, end, shared, deep)
    mask = vlm.model.attn_mask[: prompts.shape[1], : prompts.shape[1]]
    slow = run_blocks(transformer, prompts, deep, at=1, mask=mask)[torch.arange(len(end)), end]
    torch.testing.assert_close(found, slow, rtol=1e-9, atol=1e-10)


def test_what_is_remembered_of_a_tensor_is_forgotten_when_it_changes():
    tensor, made = torch.arange(3), []

    def make() -> int:
        made.append(tensor.sum().item())
        return made[-1]

    assert [remembered(tensor, "sum", make) for _ in range(2)] == [3, 3] and made == [3]
    assert remembered(tensor, "other", make) == 3 and len(made) == 2
    tensor += 1
    assert remembered(tensor, "sum", make) == 6
    assert remembered(tensor.clone(), "sum", make) == 6 and len(made) == 4
