"""What a precision means on the device at hand, and how weights are laid out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dho_plugin.precision import Precision, read_later

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 2))


@pytest.mark.parametrize(
    ("asked", "capability", "name", "half", "scaled"),
    [
        ("bf16", (9, 0), "bf16", torch.bfloat16, False),
        ("bf16", (7, 5), "amp", torch.float16, True),
        ("amp", (9, 0), "amp", torch.float16, True),
        ("fp16", (9, 0), "fp16", torch.float16, True),
        ("fp32", (9, 0), "fp32", torch.float16, False),
    ],
)
def test_on_a_gpu(monkeypatch, recwarn, asked, capability, name, half, scaled):
    asked_for = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: asked_for.append(enabled))
    found = Precision(asked, GPU)
    assert (found.name, found.half, asked_for) == (name, half, [scaled])
    said = [str(warning.message) for warning in recwarn]
    assert said == [] if name == asked else said[0].startswith(f"PREC {asked} needs a GPU of compute capability 8")


@pytest.mark.parametrize("asked", ["fp32", "amp", "fp16", "bf16"])
def test_on_a_cpu_with_one_warning(recwarn, asked):
    found = Precision(asked, CPU)
    assert (found.name, found.scaler.is_enabled()) == ("fp32", False)
    said = [str(warning.message) for warning in recwarn]
    assert said == [f"PREC {asked} needs a GPU; this run is on the cpu and computes in fp32"] * (asked != "fp32")


@pytest.mark.parametrize(
    ("asked", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_what_is_frozen_is_stored_in_half(monkeypatch, asked, dtype):
    monkeypatch.setattr("dho_plugin.precision.HALF_DEVICES", ("cpu",))
    frozen, images = network(), torch.randn(2, 3, 8, 8)
    expected = frozen(images)
    stored = Precision(asked, CPU).store(frozen)
    assert {p.dtype for p in stored.parameters()} == {dtype}
    assert stored[2].weight.is_contiguous()
    torch.testing.assert_close(stored.float()(images), expected, rtol=0, atol=2e-2)


def test_channels_are_last_on_a_gpu_alone():
    model, precision = network(), Precision("fp32", CPU)
    assert precision.lay_out(copy.deepcopy(model))[2].weight.is_contiguous()
    precision.device_type = "cuda"
    laid = precision.lay_out(copy.deepcopy(model))
    assert not laid[2].weight.is_contiguous()
    assert all(torch.equal(one, other) for one, other in zip(laid.parameters(), model.parameters(), strict=True))
    tokens = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Flatten())  # as a ViT has them
    assert precision.lay_out(tokens)[0].weight.is_contiguous()


def test_gradients_add_up_until_a_step_is_taken():
    precision, layer = Precision("fp32", CPU), nn.Linear(2, 1)
    optimizer, before = torch.optim.SGD(layer.parameters(), lr=1.0), layer.bias.item()
    for _ in range(2):
        precision.backward(layer(torch.ones(1, 2)).sum())
    precision.update([optimizer])
    assert layer.bias.item() == pytest.approx(before - 2)


def test_a_flag_is_read_where_it_is():
    assert read_later(torch.tensor(True))() is True and read_later(torch.tensor(False))() is False
