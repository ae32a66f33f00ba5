from __future__ import annotations

import copy
import re
import socket
from pathlib import Path

import open_clip
import pytest
import tiny
import torch

from dho_plugin.errors import UsageError
from dho_plugin.layers import run_blocks
from dho_plugin.store import weights_hash
from dho_plugin.text_memory import kept_bytes
from dho_plugin.vlm import OPENAI_NAMES, QuickGELU, find_vlm, imagenet_templates, load_vlm


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No name resolves, and the user's caches are empty."""

    def refuse(*args, **kwargs):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def images(size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def features(vlm) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        picture = vlm.encode_image(vlm.normalize(images(vlm.image.size)))
    return picture, vlm.encode_text(vlm.tokenize(["a photo of a tench.", "a crane"]))


def test_self_describing_file_gives_the_models_own_features(tmp_path):
    model = tiny.tiny_clip()
    vlm = load_vlm(str(tiny.save_self_describing(tmp_path / "a.safetensors", model)))
    assert (vlm.image.size, vlm.width, vlm.context_length) == (32, 32, 77)
    assert vlm.logit_scale == pytest.approx(100, rel=1e-4)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (tiny.MEAN, tiny.STD))
    picture, text = features(vlm)
    torch.testing.assert_close(picture, model.encode_image((images().float() / 255 - mean) / std))
    tokens = open_clip.tokenize(["a photo of a tench.", "a crane"])
    torch.testing.assert_close(text, model.encode_text(tokens))


@pytest.mark.parametrize("vision", [tiny.VIT, tiny.RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("form", ["state_dict", "torchscript"])
def test_openai_files_are_recognised(tmp_path, vision, form):
    model = tiny.tiny_clip(vision, embed_dim=48)
    path = tmp_path / "model.pt"
    if form == "state_dict":
        torch.save(tiny.openai_state(model, vision["image_size"]), path)
    else:
        for name, value in tiny.openai_marks(vision["image_size"]).items():
            model.__dict__.pop(name, None)  # an attribute of open_clip's, a tensor in OpenAI's archives
            model.register_buffer(name, value)
        model.__dict__["attn_mask"] = model._buffers.pop("attn_mask")  # no entry of OpenAI's archives
        size = vision["image_size"]
        traced = torch.jit.trace_module(
            model,
            {"encode_image": (torch.zeros(1, 3, size, size),), "encode_text": (open_clip.tokenize(["a"]),)},
            check_trace=False,
        )
        traced.save(str(path))
    vlm = load_vlm(str(path))
    assert vlm.image.size == vision["image_size"]
    with torch.no_grad():
        expected = model.encode_image(vlm.normalize(images(vlm.image.size)))
    # OpenAI's format passes through half precision.
    torch.testing.assert_close(features(vlm)[0], expected, rtol=2e-2, atol=2e-2)


def test_a_bare_checkpoint_needs_the_architecture_and_then_loads(tmp_path, monkeypatch):
    config = {"embed_dim": 32, "vision_cfg": tiny.VIT, "text_cfg": tiny.TEXT, "quick_gelu": True}
    (tmp_path / "Tiny-test.json").write_text(__import__("json").dumps(config))
    open_clip.add_model_config(tmp_path / "Tiny-test.json")
    model = tiny.tiny_clip()
    path = tmp_path / "epoch.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    with pytest.raises(UsageError, match=r"ARCHITECTURE:.*epoch\.pt"):
        load_vlm(str(path))
    picture, _ = features(load_vlm(f"Tiny-test:{path}"))
    reference = features(load_vlm(str(tiny.save_self_describing(tmp_path / "a.safetensors", model))))[0]
    torch.testing.assert_close(picture, reference)
    with pytest.raises(UsageError, match=r"does not fit ViT-B-32"):
        load_vlm(f"ViT-B-32-quickgelu:{path}")


def test_sparse_token_table_fills_the_other_rows_with_zeros(tmp_path):
    model = tiny.tiny_clip()
    state = model.state_dict()
    ids = open_clip.tokenize(["a photo of a tench.", "a crane"]).unique()
    full = state.pop("token_embedding.weight")
    state["token_embedding.ids"], state["token_embedding.rows"] = ids.int(), full[ids].contiguous()
    model.token_embedding.weight.data.mul_(torch.isin(torch.arange(len(full)), ids).unsqueeze(1))
    dense = load_vlm(str(tiny.save_self_describing(tmp_path / "dense.safetensors", model)))
    sparse = tmp_path / "sparse.safetensors"
    with_metadata = __import__("safetensors").safe_open(str(tmp_path / "dense.safetensors"), "pt").metadata()
    tiny.save_file({k: v.contiguous() for k, v in state.items()}, str(sparse), metadata=with_metadata)
    torch.testing.assert_close(features(load_vlm(str(sparse)))[1], features(dense)[1])
    assert sparse.stat().st_size < (tmp_path / "dense.safetensors").stat().st_size / 10


@pytest.mark.parametrize("name", sorted(OPENAI_NAMES))
def test_coops_names_carry_the_right_activation(name, offline):
    assert open_clip.get_model_config(OPENAI_NAMES[name])["quick_gelu"]
    with pytest.raises(UsageError, match=r"no network") as error:
        load_vlm(name)
    file = re.search(r"to (\S+\.pt)", str(error.value))[1]
    assert Path(file).parent == Path("~/.cache/clip").expanduser()


def test_openais_cache_is_found(offline, monkeypatch):
    cache = Path("~/.cache/clip").expanduser()
    cache.mkdir(parents=True)
    torch.save(tiny.openai_state(tiny.tiny_clip(), 32), cache / "ViT-B-16.pt")
    with pytest.raises(UsageError, match=r"ViT-B-16\.pt is no ViT-B-16-quickgelu"):
        load_vlm("ViT-B/16")  # found, and seen to hold something smaller


def test_other_architectures_bring_their_own_normalisation():
    from dho_plugin.vlm import _usual_preprocess

    assert _usual_preprocess("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert _usual_preprocess("ViT-B-16-quickgelu")["mean"] == pytest.approx(tiny.MEAN)


@pytest.mark.parametrize(
    ("given", "right"),
    [("ViT-B-16:openai", "ViT-B-16-quickgelu:openai"), ("ViT-H-14-378:dfn5b", "ViT-H-14-378-quickgelu:dfn5b")],
)
def test_wrong_activation_is_an_error_with_the_right_name(given, right, offline):
    with pytest.raises(UsageError, match=re.escape(f"'{right}'")):
        load_vlm(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ViT-B/61", "Did you mean 'ViT-B/16'"),
        ("RN50-quickgelu", "TAG one of"),
        ("ViT-B-16:opena", "Did you mean 'openai'"),
        ("missing/model.pt", "no model file"),
    ],
)
def test_unknown_names_are_answered(given, message, offline):
    with pytest.raises(UsageError, match=re.escape(message)):
        load_vlm(given)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    canary = tmp_path / "canary"

    class Malicious:
        def __reduce__(self):
            return (Path.touch, (canary,))

    torch.save({"state_dict": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(UsageError, match="plain tensors"):
        load_vlm(f"ViT-B/16:{tmp_path / 'evil.pt'}")
    assert not canary.exists()


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return load_vlm(str(tiny.save_self_describing(tmp_path_factory.mktemp("w") / "a.safetensors", tiny.tiny_clip())))


def test_text_from_embeddings_is_exact_even_when_cut_after_the_longest_prompt(vlm):
    tokens = vlm.tokenize(["a photo of a tench.", "a photo of a very long tank suit name.", "crane"])
    end = tokens.argmax(-1)
    with torch.no_grad():
        expected = vlm.model.encode_text(tokens)
    torch.testing.assert_close(vlm.encode_text(tokens), expected)
    torch.testing.assert_close(vlm.encode_text(tokens[:1]), expected[:1])
    for length in (77, int(end.max()) + 1):
        torch.testing.assert_close(vlm.encode_text_embeddings(vlm.embed_tokens(tokens[:, :length]), end), expected)


def test_gradients_flow_to_embeddings_and_to_nothing_else(vlm):
    tokens = vlm.tokenize(["a tench"])
    embeddings = vlm.embed_tokens(tokens).requires_grad_()
    vlm.encode_text_embeddings(embeddings, tokens.argmax(-1)).sum().backward()
    assert embeddings.grad.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in vlm.parameters())


def test_class_embeddings_average_unit_vectors_and_renormalise(vlm):
    templates = ("a photo of a {}.", "{} texture.", "an image of a {}.")
    ours = vlm.class_embeddings(["tank_suit", "crane"], templates)
    for row, name in zip(ours, ("tank suit", "crane"), strict=True):
        units = [vlm.encode_text(vlm.tokenize([t.format(name)]))[0] for t in templates]
        mean = sum(unit / unit.norm() for unit in units) / 3
        torch.testing.assert_close(row, mean / mean.norm())


def test_long_prompts_are_refused_not_cut(vlm):
    with pytest.raises(UsageError, match="82 tokens"):
        vlm.tokenize(["crane " * 80])


def test_stays_in_eval_mode(vlm):
    assert not vlm.train().training
    assert not vlm.model.training


def test_the_eighty_templates():
    assert len(imagenet_templates()) == 80
    assert all(template.count("{}") == 1 for template in imagenet_templates())


def test_random_weights_are_always_the_same_and_said(capsys):
    one, other = load_vlm("ViT-S-32-alt:random"), load_vlm("ViT-S-32-alt:random")
    assert one.name == "ViT-S-32-alt:random" and "random weights, which know nothing" in capsys.readouterr().out
    assert weights_hash(one) == weights_hash(other)
    for name in ("no-such:random", "roberta-ViT-B-32:random"):
        with pytest.raises(UsageError, match="without a download"):
            find_vlm(name)


def test_the_lighter_activation_is_open_clips():
    ours, theirs = QuickGELU().double(), open_clip.transformer.QuickGELU().double()
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    weights = torch.randn(101, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine, other = (torch.autograd.grad((activation(x) * weights).sum(), x)[0] for activation in (ours, theirs))
    torch.testing.assert_close(mine, other)
    assert kept_bytes(lambda: ours(x), [x]) == 101 * 8
    for dtype in (torch.float16, torch.bfloat16, torch.float32):  # the same bits whether or not a gradient is wanted
        few = x.detach().to(dtype).requires_grad_()
        assert torch.equal(ours(few), theirs(few))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("prompted", [False, True])
def test_the_image_feature_and_its_gradient_are_those_of_all_tokens_of_all_layers(vlm, prompted):
    """The last layer computes the class token alone."""
    vlm = copy.deepcopy(vlm).double()
    vlm.model.visual.requires_grad_(True)
    assert vlm.plain_vit
    learned = [torch.randn(2, 3, vlm.image_token_width, dtype=torch.float64, requires_grad=True)] if prompted else []
    normal = vlm.normalize(images(vlm.image.size)).double()

    def slow() -> torch.Tensor:
        visual = vlm.model.visual
        if not prompted:
            return vlm.model.encode_image(normal)
        tokens = vlm.patch_tokens(normal)
        x = visual.ln_pre(torch.cat([tokens, learned[0][0].expand(3, -1, -1)], dim=1))
        x = run_blocks(visual.transformer, x, [learned[0][1:]], at=tokens.shape[1])
        return visual.ln_post(x)[:, 0] @ visual.proj

    wanted = [*learned, *vlm.model.visual.parameters()]
    features = vlm.encode_image(normal, learned), slow()
    torch.testing.assert_close(*features)
    found = [torch.autograd.grad((f * f.cos()).sum(), wanted, allow_unused=True) for f in features]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_loaded_model_has_the_lighter_activation_alone(vlm):
    kinds = {type(part) for part in vlm.modules() if isinstance(part, open_clip.transformer.QuickGELU)}
    assert kinds == {QuickGELU} == {type(p) for p in copy.deepcopy(vlm).modules() if "GELU" in type(p).__name__}
