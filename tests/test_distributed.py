"""Several processes: each its part of every batch, all the steps and answers of one, and none left waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import processes
import pytest
import runs
import torch
import torch.distributed as dist
from dho_plugin.trainers.storing import store_views
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dho_plugin import cli, distributed
from dho_plugin.batch_norm import WholeBatchNorm, synchronised
from dho_plugin.distributed import (
    PeerStopped,
    agreed,
    gathered,
    is_main,
    joined,
    main_first,
    mean,
    rank,
    share,
    shared_out,
    world_size,
)
from dho_plugin.errors import UsageError
from dho_plugin.launch import TORCHRUN
from dho_plugin.towers import VLM

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    """No trace of a launcher that the tests themselves may run under."""
    for name in (*TORCHRUN, "SLURM_STEP_NUM_TASKS", "SLURM_PTY_PORT"):
        monkeypatch.delenv(name, raising=False)


# Together


def test_one_process_needs_no_launcher():
    with joined(), main_first():
        assert (world_size(), rank(), is_main(), dist.is_initialized()) == (1, 0, True, False)
        assert (agreed(-3), gathered("it"), share(5, "SIZE")) == (-3, ["it"], slice(0, 5))
        assert mean({"loss": torch.tensor(2.0)}) == {"loss": 2.0}
        assert list(shared_out(DataLoader(Numbers(3), batch_size=2), len)) == [2, 1]
        layer = nn.BatchNorm2d(3)
        assert synchronised(layer) is layer


def together() -> tuple:
    with joined():
        me = rank()
        means = mean({"loss": torch.tensor(1.0 + me), "acc": torch.tensor([10.0 * me], dtype=torch.float64)[0]})
        found = gathered({"me": me, "logits": (torch.arange(100.0)[me : me + 1],)})
        print(f"process {me}")
        warnings.warn(f"process {me}", stacklevel=1)
        list(tqdm([1, 2], disable=False))
        with joined():  # a part of the run that is an entry point of its own
            pass
        return world_size(), me, is_main(), agreed(-7 - me), means, found, share(6, "SIZE")


def test_processes_agree_and_the_first_alone_speaks():
    found = processes.outcomes(2, together)
    assert [outcome.error for outcome in found] == ["", ""]
    assert [outcome.value[:4] for outcome in found] == [(2, 0, True, -7), (2, 1, False, -7)]
    for outcome in found:
        assert outcome.value[4] == {"loss": 1.5, "acc": 5.0}
        assert outcome.value[5] == [{"me": me, "logits": (torch.tensor([float(me)]),)} for me in (0, 1)]
        assert outcome.value[5][1]["logits"][0].untyped_storage().nbytes() == 4
    assert [outcome.value[6] for outcome in found] == [slice(0, 3), slice(3, 6)]
    assert found[0].printed == "process 0\n" and "process 0" in found[0].warned and "2/2" in found[0].warned
    assert found[1].printed == found[1].warned == ""


def cache(file: Path) -> str:
    with joined():
        with main_first():
            if not file.exists():
                time.sleep(0.2)  # the others would long have looked
                file.write_text(f"by {rank()}")
        return file.read_text()


def test_the_first_process_fills_what_the_others_find(tmp_path):
    assert processes.run(3, cache, tmp_path / "cache") == ["by 0"] * 3


def fail_first() -> int:
    with joined():
        try:
            with main_first():
                raise UsageError("no room") if is_main() else AssertionError("the block ran")
        except UsageError:
            return agreed(1)
        except PeerStopped:
            return agreed(2)


def test_nobody_waits_for_a_first_process_that_failed():
    """Even if that one goes on."""
    assert processes.run(3, fail_first, seconds=30) == [2, 2, 2]


# A process that ends


class Steps(nn.Module):
    """A step as DistributedDataParallel wraps it: it owns what is learned, and gives more than the loss."""

    def __init__(self, learned: nn.Module) -> None:
        super().__init__()
        self.learned = learned

    def forward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        logits = self.learned(batch["img"])
        return {"loss": logits.square().mean()}, logits


def leave(how: str) -> None:
    with joined():
        if how == "step":
            steps = DistributedDataParallel(Steps(nn.Linear(3, 2)))
        agreed(0)
        if rank() == 1:
            if how == "error":
                raise UsageError("its own disk is full")
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "step":
            steps({"img": torch.ones(4, 3)})[0]["loss"].backward()
        elif how == "gathered":
            list(shared_out(DataLoader(Numbers(9)), len))
        elif how == "main_first":
            with main_first():
                pass
            agreed(0)
        else:
            agreed(0)


@pytest.mark.parametrize("how", ["agreed", "step", "gathered", "main_first", "error"])
def test_the_others_end_with_a_process_that_ends(how):
    for other, outcome in enumerate(processes.outcomes(2 + (how == "agreed"), leave, how, seconds=30)):
        if other != 1:
            assert "dho_plugin.distributed.PeerStopped: another process" in outcome.error
        else:
            assert ("its own disk is full" if how == "error" else "ended with status -9") in outcome.error


def stand_still() -> None:
    with joined():
        agreed(0)
        if rank() == 1:
            time.sleep(60)
        agreed(1)


def test_a_process_that_stands_still_is_waited_for_as_long_as_was_asked(monkeypatch):
    monkeypatch.setenv("DHO_PATIENCE", "0.05")
    with pytest.raises(TimeoutError) as error:
        processes.run(2, stand_still, seconds=30)
    said = "PeerStopped: another process of this run has not come for 0:00:03 (DHO_PATIENCE)"
    assert "processes [1] have not ended" in str(error.value) and said in str(error.value)


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "1e300"])
def test_a_patience_that_is_none_is_refused(taken, monkeypatch, given):
    monkeypatch.setenv("DHO_PATIENCE", given)
    with pytest.raises(UsageError, match=f"DHO_PATIENCE={given}: expected minutes"), joined(cuda=False):
        pass


# Shares


def test_a_batch_of_unequal_parts_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    assert share(12, "SIZE") == slice(8, 12)
    with pytest.raises(UsageError, match=r"SIZE 16 .* all 3 processes.* give 15 or 18, or .*--nproc_per_node"):
        share(16, "SIZE")
    with pytest.raises(UsageError, match="give 3, or"):
        share(2, "SIZE")


class Numbers(Dataset):
    """Item i is i; remembers what was asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


def answers(counts: list[int], workers: int) -> list[tuple]:
    found = []
    with joined():
        for count in counts:
            torch.manual_seed(5)
            numbers = Numbers(count)
            loader = DataLoader(numbers, batch_size=2, num_workers=workers)
            answered = list(shared_out(loader, lambda batch: {"batch": batch, "by": (rank(), batch.sum())}))
            found.append((answered, numbers.read, torch.rand(1)))
    return found


@pytest.mark.parametrize(("size", "workers"), [(2, 0), (3, 0), (2, 1)])
def test_every_batch_is_answered_once_and_in_order(size, workers):
    """Of every remainder, none among them; and the random numbers afterwards are those of one process."""
    counts = [0, 1, 2, 3, 5, 7, 8, 11] if not workers else [3]
    found = processes.run(size, answers, counts, workers)
    for which, ((alone, _, random), count) in enumerate(zip(answers(counts, 0), counts, strict=True)):
        everyone = [process[which] for process in found]
        for answered, _, after in everyone:
            assert [one["batch"].tolist() for one in answered] == [one["batch"].tolist() for one in alone]
            assert [one["by"] for one in answered] == [(i % size, one["by"][1]) for i, one in enumerate(alone)]
            assert torch.equal(after, random)
        if not workers:
            assert sorted(index for _, read, _ in everyone for index in read) == list(range(count))


def batches(workspace: Path, output: Path) -> list[dict]:
    with joined():
        options = "DATALOADER.TRAIN_U.SAME_AS_X False DATALOADER.TRAIN_U.BATCH_SIZE 6"
        trainer = runs.make(workspace, "LinearProbeDHO", output / str(rank()), "", options)
        return [trainer.train_loader_x.batches[step] for step in range(3)]


def test_the_parts_of_a_batch_are_the_batch(workspace, tmp_path):
    alone = batches(workspace, tmp_path / "alone")
    for whole, *parts in zip(alone, *processes.run(2, batches, workspace, tmp_path), strict=True):
        for key in ("img", "img_teacher", "index", "label"):
            assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])
        for key in ("img", "img_teacher", "index"):
            assert torch.equal(torch.cat([part["unlabeled"][key] for part in parts]), whole["unlabeled"][key])


# Batch normalisation


def network() -> nn.Module:
    torch.manual_seed(3)
    inner = nn.Sequential(nn.BatchNorm2d(4, momentum=None), BatchNormAct2d(4, act_layer=nn.ReLU), nn.Flatten())
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), inner, nn.BatchNorm1d(36, affine=False)]
    network = nn.Sequential(*layers, nn.Linear(36, 3)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


IMAGES = 5 + torch.randn(8, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def normalised(keep: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Outputs, gradients and state after three steps on parts of the same eight images, and kinds of layers."""
    with joined():
        model = network() if keep else synchronised(network())
        before = list(model.state_dict())
        wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world_size() > 1 else model
        part = share(len(IMAGES), "SIZE")
        for step in range(3):
            images = (IMAGES * (1 + step))[part].requires_grad_()
            out = wrapped(images)
            model.zero_grad()
            ((out - torch.linspace(-1, 1, 3).double()) ** 3).mean().backward()
        found = {f"gradient of {name}": p.grad for name, p in model.named_parameters()} | model.state_dict()
        found["out"] = torch.cat(gathered(out))
        found["gradient of images"] = torch.cat(gathered(images.grad)) / world_size()  # of a sum of means
        model.eval()
        found["eval"] = model(IMAGES)
        assert list(model.state_dict()) == before
        return {key: value.detach() for key, value in found.items()}, [type(m).__name__ for m in model.modules()]


def test_batch_norm_is_of_the_whole_batch():
    alone, kinds = normalised(False)
    assert "WholeBatchNorm" not in kinds
    for found, kinds in processes.run(2, normalised, False):
        assert kinds.count("WholeBatchNorm") == 4 and not any(kind.startswith("BatchNorm") for kind in kinds)
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    parts, _ = processes.run(2, normalised, True)[0]
    assert not torch.allclose(parts["out"], alone["out"], atol=1e-3)


def test_an_unknown_batch_norm_is_refused(monkeypatch):
    class Own(nn.BatchNorm2d):
        pass

    monkeypatch.setattr("dho_plugin.batch_norm.world_size", lambda: 2)
    with pytest.raises(UsageError, match="Own normalises over the batch in a way of its own"):
        synchronised(nn.Sequential(nn.ReLU(), Own(3)))
    layer = nn.BatchNorm2d(3).eval()
    layer.weight.requires_grad_(False)
    new = synchronised(layer)
    assert isinstance(new, WholeBatchNorm) and new.weight is layer.weight and not new.training


# What is stored


def stored(workspace: Path, folder: Path, break_share: bool = False) -> tuple[int, list[Tensor]]:
    """How many views this process computed, and what the run's steps read of the student."""
    looked = []
    features = VLM.features

    def counted(vlm: VLM, images: Tensor) -> Tensor:
        if break_share and rank() == 1:
            raise UsageError("an image that cannot be read")
        looked.append(len(images))
        return features(vlm, images)

    with joined():
        options = f"STORE.DIR {folder / 'store'}"
        trainer = runs.make(workspace, "LinearProbeDHO", folder / str(rank()), "", options)
        trainer.teacher  # noqa: B018 - loaded before its looks are counted
        VLM.features = counted
        try:
            store_views(trainer)
        finally:
            VLM.features = features
        source = trainer.train_loader_x.batches.labeled
        numbers = torch.from_numpy(source.numbers[source.needed(trainer.labeled_positions())])
        return sum(looked), [trainer.stored(numbers), trainer.teacher.stored(numbers)]


def test_views_to_be_stored_are_shared_out(workspace, tmp_path, capsys):
    whole, wanted = stored(workspace, tmp_path / "alone")
    said = capsys.readouterr().out
    found = processes.outcomes(2, stored, workspace, tmp_path)
    assert [outcome.error for outcome in found] == ["", ""]
    counts = [outcome.value[0] for outcome in found]
    assert sum(counts) == whole and min(counts) > 0
    for outcome in found:
        for one, other in zip(outcome.value[1], wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert "0 views stored" in said and [line for line in said.splitlines() if "views stored" in line] == [
        line for line in found[0].printed.splitlines() if "views stored" in line
    ]
    assert found[1].printed == ""
    files = [np.fromfile(path, dtype="<u8") for path in (tmp_path / "store" / "files").glob("*.files")]
    assert len(files) == 1  # the images' contents are read by the first process alone


def test_a_share_that_cannot_be_computed_ends_all(workspace, tmp_path):
    first, second = processes.outcomes(2, stored, workspace, tmp_path, True, seconds=60)
    assert "PeerStopped" in first.error and "an image that cannot be read" in second.error


# Launching


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "but LOCAL_RANK not set"),
        ({"WORLD_SIZE": "two"}, "is no number"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "srun has started 4 processes.* torchrun"),
    ],
)
def test_half_a_launch_is_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message), joined():
        pass


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # in a batch script
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun python train.py
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_PTY_PORT": "1"},  # srun --pty bash
    ],
)
def test_a_single_process_is_known_as_one(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joined():
        assert world_size() == 1


@pytest.fixture
def taken(monkeypatch) -> list:
    """What this process takes as process 5 of 6 on two machines of two GPUs, where it is the second of three."""
    taken: list = []
    place = {"WORLD_SIZE": "6", "RANK": "5", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in {**place, "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: taken.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    return taken


def test_the_place_on_the_machine_picks_the_gpu(taken, monkeypatch):
    with joined():
        pass
    assert taken == [1, "cpu:gloo,cuda:nccl"]
    with joined(cuda=False):
        pass
    assert taken[2:] == ["gloo"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with (
        pytest.raises(UsageError, match="3 processes on a machine that shows 2 GPUs: give --nproc_per_node 2"),
        joined(),
    ):
        pass


@pytest.mark.parametrize(("options", "expected"), [("USE_CUDA False", ["gloo"]), ("", [])])
def test_a_run_on_the_processor_asks_for_no_gpu(taken, monkeypatch, capsys, options, expected):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(cli, "_main", lambda args: 0)
    status = cli.main(["--trainer", "CoOp", "--dataset", "shapes", *options.split()])
    assert taken == expected and status == (0 if expected else 2)
    assert ("3 processes on a machine that shows 2 GPUs" in capsys.readouterr().err) == (not expected)


def test_torchrun_starts_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dho_plugin.distributed import agreed, joined, rank\n"
        "with joined():\n"
        "    print('the largest is', agreed(rank() + 40))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "the largest is 41\n"), done.stderr
