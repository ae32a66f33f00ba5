"""Exported models: every file answers as the run does, and one that does not is never written."""

from __future__ import annotations

import hashlib
import json
import shutil

import bundles
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from dho_plugin import export, parity, quantising
from dho_plugin.errors import UsageError
from dho_plugin.fused import FusedStudent, fuse, load_bundle, save_fused
from dho_plugin.predict import load_torch
from dho_plugin.predicting import load_onnx
from dho_plugin.runs import load_run
from dho_plugin.vlm import build_vision, vision_config

onnx = pytest.mark.skipif(any(export.find_spec(name) is None for name in export.ONNX_PACKAGES), reason="no onnx")
READERS = {"model.safetensors": load_torch, "model.pt2": export.read_program, "model.onnx": load_onnx}


@pytest.mark.parametrize(
    ("trainer", "cnn", "formats"),
    [
        pytest.param("StudentDHO", True, "", marks=onnx),
        ("StudentDHO", False, "safetensors"),
        pytest.param("CoOpDHO", False, "safetensors onnx", marks=onnx),
        pytest.param("VPTDHO", False, "", marks=onnx),
        ("SSKD", True, "safetensors"),
    ],
)
def test_every_artefact_answers_as_the_run_does(workspace, trainer, cnn, formats):
    bundle = bundles.exported(workspace, trainer, cnn, formats, apart=trainer == "SSKD")
    own = load_run(workspace / "runs" / bundle.name)
    images = torch.stack([own.test_loader.dataset[i]["img"] for i in range(7)])
    expected = own.model_inference(own.student.normalize(images)).numpy()
    files = sorted(path.name for path in bundle.glob("model.*"))
    named = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
    assert files == sorted(named[name] for name in (formats.split() or named))
    for file in files:
        run = READERS[file](bundle)
        for batch in (1, 3, 7):
            found = [run(images.numpy()[at : at + batch]) for at in range(0, 7, batch)]
            probabilities = np.concatenate([part["probabilities"] for part in found])
            np.testing.assert_allclose(probabilities, expected, atol=1e-5, err_msg=f"{file} {batch}")
        if trainer == "SSKD":
            assert found[0].keys() == {"probabilities"}
            continue
        heads = own.heads(own.student.normalize(images))
        np.testing.assert_allclose(found[0]["ce"], torch.softmax(heads.ce, dim=1), atol=1e-5)
        np.testing.assert_allclose(found[0]["kd"], torch.softmax(heads.kd / own.interpolation.beta, dim=1), atol=1e-5)


@pytest.mark.parametrize("trainer", ["PromptSRCCasPL", "MaPLeDHO", "KDFeature"])
def test_prompts_boosting_and_projection_come_back_from_safetensors(workspace, tmp_path, trainer):
    own = load_run(bundles.trained(workspace, trainer, *(bundles.CNN if trainer == "KDFeature" else ())))
    save_fused(fuse(own), tmp_path / "model.safetensors")
    images = torch.stack([own.test_loader.dataset[i]["img"] for i in range(4)])
    answer = own.model_inference(own.student.normalize(images))
    expected = answer if trainer == "MaPLeDHO" else torch.softmax(answer, dim=1)
    torch.testing.assert_close(load_bundle(tmp_path)(images)["probabilities"], expected, atol=1e-5, rtol=0)


def test_merged_tokens_stay_merged(workspace, tmp_path):
    plain = bundles.trained(workspace, "VPTDHO")
    own = load_run(plain, {"MODEL.TOKEN_MERGING": 4})
    save_fused(fuse(own), tmp_path / "model.safetensors")
    images = torch.stack([own.test_loader.dataset[i]["img"] for i in range(4)])
    expected = own.model_inference(own.student.normalize(images))
    torch.testing.assert_close(load_bundle(tmp_path)(images)["probabilities"], expected, atol=1e-5, rtol=0)
    unmerged = load_run(plain).model_inference(own.student.normalize(images))
    assert (unmerged - expected).abs().max() > 1e-4  # the comparison above can fail


def test_tokens_are_merged_in_an_export_that_asks_for_it(workspace, tmp_path):
    run = bundles.trained(workspace, "VPTDHO")
    words = [str(run), "--output", str(tmp_path / "bundle"), "--formats", "safetensors", "--tome", "4"]
    assert export.main(words) == 0
    assert load_bundle(tmp_path / "bundle").backbone.at_test.r == 4
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["token_merging"] == 4


def test_no_text_tower_is_in_the_file(workspace, tmp_path):
    file = tmp_path / "model.safetensors"
    save_fused(fuse(load_run(bundles.trained(workspace, "CoOpDHO"))), file)
    with safe_open(str(file), framework="pt") as opened:
        parts = {key.rpartition("visual")[0] or key.partition(".")[0] for key in opened.keys()}  # noqa: SIM118
    assert parts == {"backbone.vlm.model.", "ce_head", "kd_head", "interpolation"}
    assert file.stat().st_size < (workspace / "student.safetensors").stat().st_size / 10


def test_the_description_of_a_bundle(workspace):
    bundle = bundles.exported(workspace, "StudentDHO", False, "safetensors")
    own = load_run(workspace / "runs" / bundle.name)
    config = json.loads((bundle / "config.json").read_text())
    assert config["classes"] == {"ids": list(own.classes.ids), "names": list(own.classes.names)}
    assert config["image"]["size"] == 32 and config["image"]["interpolation"] == own.cfg.INPUT.INTERPOLATION
    assert config["image"]["mean"] == list(own.student.image.mean)
    dho = own.cfg.TRAINER.DHO
    assert (config["alpha"], config["beta"], config["alpha_beta_chosen_by"]) == (dho.ALPHA, dho.BETA, "fixed")
    assert (config["trainer"], config["outputs"]) == ("StudentDHO", ["probabilities", "ce", "kd"])
    assert sorted(config["artefacts"]) == ["model.safetensors", "predict.py"]
    for name, entry in config["artefacts"].items():
        content = (bundle / name).read_bytes()
        assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))


# What must be refused


def other_weights(write):
    """An exporter that writes a model whose CE head is another."""

    def wrong(fused: FusedStudent, folder):
        last = [part for part in fused.ce_head.modules() if isinstance(part, nn.Linear)][-1]
        kept = last.weight.clone()
        last.weight.mul_(1.01)
        write(fused, folder)
        last.weight.copy_(kept)

    return wrong


@pytest.mark.parametrize("name", ["safetensors", "torch", pytest.param("onnx", marks=onnx)])
def test_a_file_with_other_weights_is_refused_and_leaves_nothing(workspace, tmp_path, monkeypatch, capsys, name):
    run = bundles.trained(workspace, "StudentDHO", *bundles.CNN)
    artefact = export.FORMATS[name]
    monkeypatch.setitem(export.FORMATS, name, artefact._replace(write=other_weights(artefact.write)))
    with pytest.raises(UsageError, match=rf"{artefact.file} at batch 1.*differs from the trained model"):
        export.main([str(run), "--output", str(tmp_path / "bundle"), "--formats", name])
    assert not list(tmp_path.iterdir())
    assert "largest difference" not in capsys.readouterr().out


def sample() -> parity.Sample:
    rng = np.random.default_rng(0)
    expected = {name: rng.dirichlet(np.ones(4), 10).astype(np.float32) for name in ("probabilities", "ce", "kd")}
    return parity.Sample(np.arange(10)[:, None], {batch: expected for batch in parity.BATCHES})


def answering(change):
    """A model that gives the expected answers, changed."""
    truth = sample().expected[1]
    return lambda images: change({name: value[images[:, 0]].copy() for name, value in truth.items()}, images)


def changed(name, change):
    def apply(outputs, images):
        outputs[name] = change(outputs[name], images)
        return outputs

    return answering(apply)


WRONG = {
    "swapped heads": answering(lambda out, _: {**out, "ce": out["kd"], "kd": out["ce"]}),
    "batch 5 alone": changed("kd", lambda values, images: values[::-1] if len(images) == 5 else values),
    "nan": changed("probabilities", lambda values, _: np.where(values == values.max(1, keepdims=True), np.nan, values)),
    "no kd": answering(lambda out, _: {name: out[name] for name in ("probabilities", "ce")}),
    "a column less": changed("ce", lambda values, _: values[:, :-1]),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_answers_are_noticed(what):
    assert parity.check("model", answering(lambda out, _: out), sample()) == {1: 0.0, 5: 0.0}
    with pytest.raises(UsageError, match="batch 5" if what == "batch 5 alone" else "model"):
        parity.check("model", WRONG[what], sample())


def test_another_class_is_noticed_however_small_the_difference():
    near = np.array([[0.5, 0.5 + 1e-6]])
    own = parity.Sample(np.zeros((1, 1)), {1: {"probabilities": near}})
    with pytest.raises(UsageError, match="another class"):
        parity.check("model", lambda images: {"probabilities": near[:, ::-1]}, own)


def test_missing_packages(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    for flags in (["--formats", "onnx"], ["--int8"]):
        with pytest.raises(UsageError, match=r"onnxscript: pip install 'dho_plugin\[export\]'"):
            export.main([str(tmp_path), "--output", str(tmp_path / "b"), *flags])
    assert export.check_request(None, tmp_path / "b", int8=False) == ["safetensors", "torch"]
    assert "left out, onnxscript missing" in capsys.readouterr().out


def test_what_cannot_be_exported_is_said_at_once(workspace, tmp_path):
    (tmp_path / "taken").mkdir()
    for output, message in (("taken", "exists"), ("a/b", "no folder")):
        with pytest.raises(UsageError, match=message):
            export.main([str(tmp_path), "--output", str(tmp_path / output)])
    with pytest.raises(UsageError, match="no run in"):
        export.main([str(tmp_path), "--output", str(tmp_path / "b")])
    with pytest.raises(UsageError, match="none of our trainers"):
        fuse(nn.Linear(1, 1))
    own = load_run(bundles.trained(workspace, "StudentDHO"))
    own.test_rows = torch.tensor([0])
    with pytest.raises(UsageError, match="other classes"):
        fuse(own)


def test_a_bundle_that_cannot_be_read(workspace, tmp_path):
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        load_bundle(tmp_path)
    shutil.copy(workspace / "student.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="schema None, known here: 1"):
        load_bundle(tmp_path)


def test_an_image_tower_that_cannot_be_described():
    config = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 8, "image_size": 32}
    plain = build_vision({"embed_dim": 8, "vision_cfg": config, "quick_gelu": True})
    assert vision_config(plain) == {"embed_dim": 8, "vision_cfg": {**config, "mlp_ratio": 4.0}, "quick_gelu": True}
    odd = build_vision({"embed_dim": 8, "vision_cfg": {**config, "pool_type": "avg"}, "quick_gelu": True})
    assert vision_config(odd) is None and vision_config(nn.Linear(1, 1)) is None


@onnx
def test_int8_and_what_it_costs(workspace, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(bundles.exported(workspace, "StudentDHO", True), bundle)
    own = load_run(workspace / "runs" / "StudentDHO_cnn")
    quantising.check_convolutional(own)
    assert export.write_int8(own, bundle)["accuracy"]["images"] == 12
    right = np.zeros(2)
    for item in own.dm.dataset.val:
        view = bundles.center_view(bundles.read_image(item.impath), 32, own.dm.interpolation)[None].numpy()
        for which, file in enumerate(("model.onnx", "model.int8.onnx")):
            right[which] += load_onnx(bundle, file)(view)["probabilities"].argmax() == item.label
    fp32, int8 = 100 * right / len(own.dm.dataset.val)
    # ImageNet's validation images here are its test images, and are called so.
    line = f"accuracy {int8:.2f} % against {fp32:.2f} % on 12 test images, a cost of {fp32 - int8:.2f} points"
    assert line in capsys.readouterr().out
    sizes = [(bundle / file).stat().st_size for file in ("model.int8.onnx", "model.onnx")]
    assert sizes[0] < sizes[1] / 2
    with pytest.raises(UsageError, match="convolutional"):
        quantising.check_convolutional(load_run(bundles.trained(workspace, "StudentDHO")))
