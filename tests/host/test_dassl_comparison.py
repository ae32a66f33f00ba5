"""The embedded engine beside real Dassl in one process: the same draws, numbers, files and lines."""

from __future__ import annotations

import importlib
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import host_toy
import pytest
import torch
from embedded_api import api as embedded
from torch import nn

from dho_plugin import host
from dho_plugin.config import SHARED

DASSL_HOME = os.environ.get("DASSL_HOME", "")

pytestmark = [
    pytest.mark.real_dassl,
    pytest.mark.skipif(not DASSL_HOME, reason="DASSL_HOME does not name a Dassl checkout"),
]


@pytest.fixture(scope="module")
def dassl() -> Iterator[SimpleNamespace]:
    """Dassl's names in one place. Only the warm-up schedulers are mended: without it torch >= 2.7 cannot build them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [DASSL_HOME, *sys.path])
        host.stub_wilds()
        parts = ("config", "data", "data.datasets", "engine", "evaluation", "optim", "utils")
        names: dict[str, Any] = {}
        for part in parts:
            names |= vars(importlib.import_module(f"dassl.{part}"))
        host.mend_warmup()
        api = SimpleNamespace(**names)
        host_toy.define(api)
        host_toy.define(embedded)
        yield api


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return host_toy.write_images(tmp_path / "data")


def _config(api: Any, tmp_path: Path, *options: Any) -> Any:
    return host_toy.config(
        api, tmp_path / "data", tmp_path / ("dassl" if api is not embedded else "embedded"), *options
    )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return flat


def test_default_configuration(dassl: SimpleNamespace) -> None:
    # CoOp's key and ours, added with the trainers and datasets to whichever host serves
    added = {"DATASET.CSV", "DATASET.CONTENT", *(f"{part}.{key}" for part, keys in SHARED.items() for key in keys)}
    theirs, ours = (
        {k: v for k, v in _flat(host_.cfg_default).items() if k not in added and not re.match(r"TRAINER\..*\.", k)}
        for host_ in (dassl, embedded)
    )
    assert ours == theirs
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in theirs.items()}


@pytest.mark.parametrize("num_shots", [1, 2, 3, 16])
@pytest.mark.parametrize("repeat", [False, True])
def test_few_shot_draws(dassl: SimpleNamespace, root: Path, num_shots: int, repeat: bool) -> None:
    for seed in range(10):
        drawn = []
        for api in (dassl, embedded):
            splits = [host_toy.read_split(api, root, split) for split in ("train_x", "train_u", "val")]
            dataset = api.DatasetBase(train_x=splits[0])
            random.seed(seed)
            shots = dataset.generate_fewshot_dataset(*splits, num_shots=num_shots, repeat=repeat)
            drawn.append([[item.impath for item in source] for source in shots])
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize("schedule", ["single_step", "multi_step", "cosine"])
@pytest.mark.parametrize("steps", [(-1,), (3,), (2, 5, 11)])
@pytest.mark.parametrize("warmup", [-1, 1, 4])
@pytest.mark.parametrize("kind", ["constant", "linear"])
@pytest.mark.parametrize("recount", [True, False])
def test_learning_rates(
    dassl: SimpleNamespace, tmp_path: Path, schedule: str, steps: tuple[int, ...], warmup: int, kind: str, recount: bool
) -> None:
    options = ["OPTIM.LR_SCHEDULER", schedule, "OPTIM.STEPSIZE", steps, "OPTIM.MAX_EPOCH", 15]
    options += ["OPTIM.WARMUP_EPOCH", warmup, "OPTIM.WARMUP_TYPE", kind, "OPTIM.WARMUP_RECOUNT", recount]
    theirs, ours = (host_toy.learning_rates(api, _config(api, tmp_path, *options), 20) for api in (dassl, embedded))
    assert ours == theirs


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd", "rmsprop", "adamw"])
@pytest.mark.parametrize("staged", [False, True])
def test_optimisers_take_the_same_steps(dassl: SimpleNamespace, tmp_path: Path, name: str, staged: bool) -> None:
    weights = []
    for api in (dassl, embedded):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        cfg = _config(api, tmp_path, "OPTIM.NAME", name, "OPTIM.STAGED_LR", staged, "OPTIM.NEW_LAYERS", ("1",))
        optim = api.build_optimizer(model, cfg.OPTIM)
        for _ in range(3):
            optim.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optim.step()
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)


TRANSFORMS = [
    ("random_resized_crop", "random_flip", "normalize"),
    ("random_crop", "random_flip"),
    ("colorjitter", "randomgrayscale", "gaussian_blur"),
]


@pytest.mark.parametrize("names", TRANSFORMS, ids="+".join)
def test_batches(dassl: SimpleNamespace, root: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    batches = []
    for api in (dassl, embedded):
        torch.manual_seed(3)
        options = ("INPUT.INTERPOLATION", "bicubic", "INPUT.CROP_PADDING", 2, "INPUT.GB_K", 3)
        manager = api.DataManager(_config(api, tmp_path, "INPUT.TRANSFORMS", names, *options))
        loaders = (manager.train_loader_x, manager.train_loader_u, manager.val_loader, manager.test_loader)
        batches.append([batch for loader in loaders for batch in loader])
    assert len(batches[0]) == len(batches[1])
    for theirs, ours in zip(*batches, strict=True):
        assert set(ours) == set(theirs)
        assert ours["impath"] == theirs["impath"]
        for key in ("img", "label", "domain", "index"):
            assert torch.equal(ours[key], theirs[key])


@pytest.mark.parametrize("size", [7, 3000])
def test_evaluator(dassl: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    names = {i: f"class {i}" for i in range(6)}
    logits, labels = torch.randn(size, 6), torch.randint(0, 5, (size,))
    printed, results = [], []
    for api in (dassl, embedded):
        evaluator = api.build_evaluator(_config(api, tmp_path, "TEST.PER_CLASS_RESULT", True), lab2cname=names)
        for part in torch.arange(size).split(64):
            evaluator.process(logits[part], labels[part])
        results.append(evaluator.evaluate())
        printed.append(capsys.readouterr().out)
    assert printed[1] == printed[0]
    assert list(results[1]) == list(results[0])
    assert results[1] == pytest.approx(results[0])


LINES = (
    "epoch [",
    "Finish training",
    "Deploy",
    "Evaluate",
    "=> ",
    "* ",
    "Elapsed",
    "Checkpoint saved",
    "No checkpoint",
)


def _mask(line: str) -> str:
    line = re.sub(r"(time|data) [\d.]+ \([\d.]+\)", r"\1 -", line)
    return re.sub(r"(eta |Elapsed: )[\d:]+", r"\1-", line)


@pytest.mark.parametrize("trainer_name", ["ToyX", "ToyXU"])
@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_whole_runs(
    dassl: SimpleNamespace,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trainer_name: str,
    final: str,
) -> None:
    """Log lines, order of hooks and batches, weights, file names and the contents of the checkpoints."""
    runs = []
    for api in (dassl, embedded):
        options = ["TRAINER.NAME", trainer_name, "TEST.FINAL_MODEL", final, "OPTIM.MAX_EPOCH", 3]
        options += ["TRAIN.COUNT_ITER", "train_u" if trainer_name == "ToyXU" else "train_x", "TRAIN.PRINT_FREQ", 2]
        options += ["INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize"), "TRAIN.CHECKPOINT_FREQ", 2]
        trainer = api.build_trainer(_config(api, tmp_path, *options, "OPTIM.WARMUP_EPOCH", 1))
        trainer.train()
        out = capsys.readouterr().out.replace(trainer.output_dir, "OUT")
        folder = Path(trainer.output_dir, "toy")
        runs.append(
            {
                "lines": [_mask(line) for line in out.splitlines() if line.startswith(LINES)],
                "trace": (trainer.hooks, trainer.steps, trainer.rates),
                "weights": trainer.model[1].weight.tolist(),
                "files": sorted(name for name in os.listdir(folder) if not name.endswith(".safetensors")),  # only ours
                "pointer": (folder / "checkpoint").read_text(),
                "keys": list(torch.load(folder / "model.pth.tar-3", weights_only=True)),
            }
        )
    for part, theirs in runs[0].items():
        assert runs[1][part] == theirs, part
    assert len(runs[0]["lines"]) > 10
