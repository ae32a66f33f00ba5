"""What the embedded engine alone promises: clear refusals, no optional packages, gentler edges than Dassl's."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import host_toy
import pytest
import torch
from embedded_api import api
from torch import nn

from dho_plugin.embedded.evaluation import confusion_counts, macro_f1
from dho_plugin.embedded.logger import Logger

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path: Path):
    host_toy.define(api)
    root = host_toy.write_images(tmp_path / "data")
    return lambda *options: host_toy.config(api, root, tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("name", "message"), [("cutout", "Dassl checkout"), ("random_flop", "Did you mean 'random_flip'")]
)
def test_transforms_that_are_refused(config, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        api.DataManager(config("INPUT.TRANSFORMS", (name,)))


@pytest.mark.parametrize(
    ("name", "message"),
    [("RandomDomainSampler", "Dassl checkout"), ("RandomSampler_", "Did you mean 'RandomSampler'")],
)
def test_samplers_that_are_refused(config, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        api.DataManager(config("DATALOADER.TRAIN_X.SAMPLER", name))


def test_radam_is_left_to_dassl(config) -> None:
    with pytest.raises(ValueError, match="Dassl checkout"):
        api.build_optimizer(nn.Linear(1, 1), config("OPTIM.NAME", "radam").OPTIM)


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "adamw", "rmsprop"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_checkpoint_of_steps_that_were_not_fused_goes_on(config, name: str, scaled: bool) -> None:
    torch.manual_seed(0)
    options, layer = config("OPTIM.NAME", name).OPTIM, nn.Linear(3, 2)
    plain, reference = api.build_optimizer([layer.weight], options), nn.Linear(3, 2, bias=False)
    for group in plain.param_groups:
        group.update({"fused": None} if "fused" in group else {})

    def step(weight: nn.Parameter, optim: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        optim.zero_grad()
        scaler.scale(weight.square().sum()).backward()
        scaler.step(optim)
        scaler.update()

    off, on = (torch.amp.GradScaler("cpu", init_scale=16.0, enabled=enabled) for enabled in (False, scaled))
    step(layer.weight, plain, off)
    reference.weight.data.copy_(layer.weight)
    resumed = api.build_optimizer(reference, options)
    resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert [group.get("fused") for group in resumed.param_groups] == [None if name == "rmsprop" else True]
    for _ in range(2):
        step(layer.weight, plain, off)
        step(reference.weight, resumed, on)
    torch.testing.assert_close(reference.weight, layer.weight)


def test_a_trainer_without_build_model_says_so(config) -> None:
    with pytest.raises(NotImplementedError, match=r"TrainerX must override build_model"):
        api.TrainerX(config())


def test_pairs_need_unlabelled_images(config) -> None:
    trainer = api.build_trainer(config("TRAINER.NAME", "ToyXU"))
    trainer.train_loader_u = None
    with pytest.raises(ValueError, match="train_u is empty"):
        trainer.train()


def test_an_empty_dataset_or_evaluation_is_refused(config) -> None:
    with pytest.raises(ValueError, match="train_x is empty"):
        api.DatasetBase(train_x=[])
    with pytest.raises(ValueError, match="no batch"):
        api.build_evaluator(config()).evaluate()


def test_a_folder_without_a_pointer_is_no_checkpoint(config) -> None:
    """A run killed while it wrote its first checkpoint must be able to start again."""
    trainer = api.build_trainer(config())
    os.makedirs(os.path.join(trainer.output_dir, "toy"))
    assert trainer.resume_model_if_exist(trainer.output_dir) == 0


def test_training_without_tensorboard(config, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    trainer = api.build_trainer(config("OPTIM.MAX_EPOCH", 1))
    trainer.train()
    assert not os.path.exists(os.path.join(trainer.output_dir, "tensorboard"))
    captured = capfd.readouterr()
    assert "Initialize tensorboard" not in captured.out
    # Neither is there a progress bar, where standard error is no terminal.
    assert captured.err == ""


def test_scalars_are_written_where_a_line_is_printed(config, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 2, "TRAIN.PRINT_FREQ", 2)
    trainer, written = api.build_trainer(config(*options)), []
    monkeypatch.setattr(trainer, "write_scalar", lambda *call: written.append(call))
    trainer.train()
    steps = trainer.num_batches
    assert steps >= 4
    expected = [epoch * steps + batch for epoch in range(2) for batch in range(steps) if batch % 2]
    assert [step for name, _, step in written if name == "train/loss"] == expected
    assert all(type(value) is float for name, value, _ in written if name.startswith("train/"))


def test_meters_leave_tensors_where_they_are_and_average_in_double() -> None:
    meter, waits = api.AverageMeter(), torch.ones((), requires_grad=True)
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for value in values:
        meter.update(value * waits)
    assert meter.avg == pytest.approx(values.double().mean().item(), rel=1e-12)
    assert isinstance(meter._sum, torch.Tensor) and not meter._sum.requires_grad and meter.val == float(values[-1])


def test_datum_has_the_attributes_of_pickled_few_shot_caches(tmp_path: Path) -> None:
    root = host_toy.write_images(tmp_path / "data")
    item = host_toy.read_split(api, root, "val")[3]
    assert vars(item) == {"_impath": item.impath, "_label": 1, "_domain": 1, "_classname": "birch"}
    assert vars(pickle.loads(pickle.dumps(item))) == vars(item)


def test_the_logger_leaves_the_console_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.StringIO()
    monkeypatch.setattr(sys, "stdout", console)
    with Logger(str(tmp_path / "log.txt")) as logger:
        logger.write("a line\n")
        # A killed run does not flush.
        assert (tmp_path / "log.txt").read_text() == "a line\n"
    logger.write("after\n")
    assert console.getvalue() == "a line\nafter\n"
    assert logger.isatty() is False


def test_top_k_accuracy() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1]])
    top1, top2 = api.compute_accuracy(logits, torch.tensor([2, 1, 0, 1]), topk=(1, 2))
    assert (top1.item(), top2.item()) == (50.0, 75.0)


@pytest.mark.parametrize("seed", range(5))
def test_f1_and_confusion_matrix_agree_with_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, 8, (60,), generator=generator).tolist()
    predicted = torch.randint(2, 12, (60,), generator=generator).tolist()
    classes, counts = confusion_counts(true, predicted)
    assert counts.tolist() == metrics.confusion_matrix(true, predicted, labels=classes).tolist()
    expected = metrics.f1_score(true, predicted, average="macro", labels=sorted(set(true)))
    assert macro_f1(counts) == pytest.approx(expected)


WITHOUT_OPTIONAL_PACKAGES = """
import sys
for name in ("dassl", "tabulate", "sklearn", "scipy", "tensorboard", "six", "wilds", "pandas", "gdown"):
    sys.modules[name] = None
from dho_plugin import host
import host_toy
from pathlib import Path
host_toy.define(host)
root = host_toy.write_images(Path(sys.argv[1], "data"))
host.build_trainer(host_toy.config(host, root, Path(sys.argv[1], "out"))).train()
loaded = [name for name, module in sys.modules.items() if name.startswith("dassl") and module is not None]
assert host.HOST == "embedded" and not loaded, loaded
"""


def test_a_run_needs_neither_dassl_nor_its_optional_packages(tmp_path: Path) -> None:
    environment = {**os.environ, "DHO_HOST": "embedded", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    command = [sys.executable, "-c", WITHOUT_OPTIONAL_PACKAGES, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Finish training\n" in done.stdout
