"""Predicting with an exported model, by the command and by the file that travels with the model."""

from __future__ import annotations

import ast
import csv
import json
import shutil
import subprocess
import sys

import bundles
import numpy as np
import pytest
from PIL import Image

from dho_plugin import predict, predicting
from dho_plugin.__main__ import main
from dho_plugin.export import ONNX_PACKAGES, find_spec
from dho_plugin.views import INTERPOLATIONS, center_view, read_image

no_onnx = any(find_spec(name) is None for name in ONNX_PACKAGES)
SIZES = [(32, 32), (33, 47), (101, 37), (7, 9), (5, 64), (32, 200), (31, 31), (1, 3)]
MODES = ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"]


@pytest.fixture(scope="module")
def bundle(workspace):
    return bundles.exported(workspace, "StudentDHO", True, "safetensors torch" if no_onnx else "")


@pytest.mark.parametrize("interpolation", predicting.INTERPOLATIONS)
def test_pixels_are_those_of_the_training_code(tmp_path, interpolation):
    assert predicting.INTERPOLATIONS.keys() == INTERPOLATIONS.keys()
    rng = np.random.default_rng(0)
    cases = [(size, "RGB") for size in SIZES] + [((45, 38), mode) for mode in MODES]
    for (width, height), mode in cases:
        path = tmp_path / ("picture.tif" if mode in ("CMYK", "I;16") else "picture.png")
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 2**16, (height, width)).astype(np.uint16))
        else:
            pixels = rng.integers(0, 256, (height, width, 4)).astype(np.uint8)
            image = Image.fromarray(pixels, "RGBA")
            image = image if mode == "RGBA" else image.convert("RGB" if mode == "CMYK" else mode).convert(mode)
        image.save(path)
        assert Image.open(path).mode == mode
        wanted = center_view(read_image(str(path)), 32, INTERPOLATIONS[interpolation])
        found = predicting.read_view(path, 32, interpolation)
        assert found.dtype == np.uint8 and np.array_equal(found, wanted.numpy()), (mode, width, height)


def test_the_file_that_travels_needs_no_torch(bundle):
    source = (bundle / "predict.py").read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "PIL", "onnxruntime", "tqdm"}


@pytest.mark.skipif(no_onnx, reason="no onnxruntime")
def test_64_images_without_torch_as_the_trained_model_sees_them(workspace, bundle, tmp_path):
    paths = bundles.pictures(tmp_path / "pictures", 64)
    block = "import sys, runpy; sys.modules.update(torch=None, dho_plugin=None); sys.argv = sys.argv[1:]; "
    code = f"{block}runpy.run_path(sys.argv[0], run_name='__main__')"
    flags = ["--format", "json", "--top-k", "6", "--batch-size", "10"]
    command = [sys.executable, "-I", "-c", code, str(bundle / "predict.py"), str(tmp_path / "pictures"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ids = json.loads((bundle / "config.json").read_text())["classes"]["ids"]
    expected = bundles.answers(workspace / "runs" / bundle.name, paths)
    assert [one["image"] for one in found] == [str(path) for path in paths]
    assert [ids.index(one["top"][0]["id"]) for one in found] == expected.argmax(dim=1).tolist()
    probabilities = [{t["id"]: t["probability"] for t in one["top"]} for one in found]
    np.testing.assert_allclose([[p[i] for i in ids] for p in probabilities], expected, atol=1e-4)
    assert len(set(expected.argmax(dim=1).tolist())) > 1


def call(bundle, *words) -> int:
    return main(["predict", "--model", str(bundle), *map(str, words)])


def read_json(capsys):
    return json.loads(capsys.readouterr().out)


def test_files_folders_and_patterns(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundles.pictures(tmp_path / "a" / "deep", 2)
    bundles.pictures(tmp_path / "b", 3)
    (tmp_path / "c" / "d").mkdir(parents=True)
    shutil.copy("b/000.png", "c/d/UPPER.JPEG")
    shutil.copy("b/000.png", "odd.suffix")
    shutil.copy("b/000.png", "b[1].png")
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    assert call(bundle, "odd.suffix", "a", "b/00[12].*", "**/*.JPEG", "b[1].png", "b", "--format", "json") == 0
    names = [one["image"].replace("\\", "/") for one in read_json(capsys)]
    wanted = ["odd.suffix", "a/deep/000.png", "a/deep/001.png", "b/001.png", "b/002.png", "c/d/UPPER.JPEG", "b[1].png"]
    assert names == [*wanted, "b/000.png"]


@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_what_cannot_be_read_costs_nothing_else(bundle, tmp_path, capsys, form):
    good = bundles.pictures(tmp_path, 3)
    whole = good[2].read_bytes()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("text.jpg", b"no image"), ("none.png", b"")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / name for name in ("cut.png", "text.jpg", "none.png", "missing.png", "no*.match", "empty")]
    assert call(bundle, good[0], *bad, *good[1:], "--format", form, "--batch-size", 2) == 1
    told = capsys.readouterr()
    assert all(str(path) in told.err for path in bad) and told.err.count("skipped") == len(bad)
    assert all(str(path) in told.out for path in good) and not any(str(path) in told.out for path in bad)
    assert call(bundle, *bad, "--format", form) == 1  # also where nothing is left
    if form == "json":
        assert read_json(capsys) == []


def test_csv_and_json_tell_the_same(bundle, tmp_path, capsys):
    paths = bundles.pictures(tmp_path, 4)
    assert call(bundle, *paths, "--format", "json", "--explain", "--top-k", 2) == 0
    told = read_json(capsys)
    assert call(bundle, *paths, "--format", "csv", "--explain", "--top-k", 2, "--output", tmp_path / "out.csv") == 0
    assert capsys.readouterr().out == ""
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(told) == 4
    for row, one in zip(rows, told, strict=True):
        shown = {"1": one["top"][0], "2": one["top"][1]}
        for rank, found in shown.items():
            assert row[f"id_{rank}"] == found["id"] and row[f"name_{rank}"] == found["name"]
            assert float(row[f"probability_{rank}"]) == found["probability"]
        assert one["top"][0]["probability"] >= one["top"][1]["probability"]
        for head in ("ce", "kd"):
            assert row[f"{head}_id"] == one[head]["id"]
        assert row["agree"] == str(one["ce"]["id"] == one["kd"]["id"]).lower() == str(one["agree"]).lower()


CONFIG = {
    "schema": 1,
    "classes": {"ids": ["n1", "n2", "n3"], "names": ["crane", "tench", "crane"]},
    "image": {"size": 4, "interpolation": "bilinear", "resize": predicting.RESIZE},
    "outputs": ["probabilities", "ce", "kd"],
}


@pytest.fixture
def fake(tmp_path):
    """A bundle whose model sees a crane, and whose heads see two different ones."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    def model(images):
        rows = {"probabilities": [0.6, 0.3, 0.1], "ce": [0.9, 0.1, 0.0], "kd": [0.2, 0.3, 0.5]}
        return {name: np.tile(np.array(row), (len(images), 1)) for name, row in rows.items()}

    def run(*words):
        return predicting.main(["--model", str(tmp_path), *map(str, words)], load=lambda folder: model)

    run.folder = tmp_path
    return run


def test_text_tells_classes_of_one_name_apart(fake, capsys):
    (path,) = bundles.pictures(fake.folder, 1)
    assert fake(path, "--explain", "--top-k", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: crane (n1) 60.0 %, tench 30.0 %"
    assert lines[1].strip() == "CE head: crane (n1) 90.0 %; KD head: crane (n3) 50.0 %; they differ"
    assert fake(path, "--top-k", 9) == 0
    assert capsys.readouterr().out.count("%") == 3


def test_progress_is_told_on_stderr(fake, capsys, monkeypatch):
    paths = bundles.pictures(fake.folder, 3)
    assert fake(*paths) == 0 and capsys.readouterr().err == ""
    monkeypatch.setattr(predicting, "SECONDS_BETWEEN_LINES", 0.0)
    assert fake(*paths) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == ["1 of 3 images", "2 of 3 images", "3 of 3 images"]
    assert len(told.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"schema": 2}, (), "schema 2"),
        ({"image": {**CONFIG["image"], "resize": "squash"}}, (), "squash"),
        ({"outputs": ["probabilities"]}, ("--explain",), "this model has one"),
        ({"classes": 1, "schema": None}, (), "schema None"),
        ({}, ("--top-k", "0"), "--top-k 0"),
        ({}, ("--batch-size", "0"), "--batch-size 0"),
        ({}, ("--output", "nowhere/out.csv"), "no such folder"),
    ],
)
def test_wrong_input_is_refused(fake, capsys, change, words, message):
    (fake.folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    assert fake("picture.png", *words) == 2
    assert message in capsys.readouterr().err
    (fake.folder / "config.json").unlink()
    assert fake("picture.png") == 2
    assert "expected a folder with config.json" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["package", "file"])
def test_torch_answers_where_onnx_cannot(bundle, tmp_path, capsys, monkeypatch, missing):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("model.onnx") if missing == "file" else None)
    if missing == "package":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (path,) = bundles.pictures(tmp_path, 1)
    assert call(copy, path, "--format", "json", "--top-k", 6) == 0
    found = {one["id"]: one["probability"] for one in read_json(capsys)[0]["top"]}
    ids = json.loads((bundle / "config.json").read_text())["classes"]["ids"]
    expected = bundles.answers(bundle.parent.parent / "runs" / bundle.name, [path])[0]
    np.testing.assert_allclose([found[id_] for id_ in ids], expected, atol=1e-4)
    (copy / "model.safetensors").unlink()
    assert call(copy, path) == 2
    assert "no model.safetensors" in capsys.readouterr().err


def test_the_command_is_the_travelling_file(monkeypatch):
    seen = {}
    monkeypatch.setattr(predicting, "main", lambda argv, **rest: seen.update(argv=argv, **rest) or 0)
    assert predict.main(["x"]) == 0 and seen["argv"] == ["x"] and seen["load"] is predict.load
