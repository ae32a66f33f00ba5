"""The part of a trainer that knows nothing of data: models, checkpoints, updates and the bare loop over epochs."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import load_checkpoint, resume_from_checkpoint, save_checkpoint
from .dataset import mkdir_if_missing


def open_writer(log_dir: str, purge_step: int | None = None) -> Any:
    """A TensorBoard writer; None where TensorBoard is not installed.

    Args:
        purge_step: what earlier writers left in that folder from this step on is no longer shown.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    mkdir_if_missing(log_dir)
    print(f"Initialize tensorboard (log_dir={log_dir})")
    return SummaryWriter(log_dir=log_dir, purge_step=purge_step)


class TrainerBase:
    """Named models with their optimisers and schedulers, and the bare loop over epochs."""

    def __init__(self) -> None:
        self._models: dict[str, nn.Module] = {}
        self._optims: dict[str, Any] = {}
        self._scheds: dict[str, Any] = {}
        self._writer: Any = None
        self.start_epoch = self.epoch = self.max_epoch = 0

    def register_model(self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None) -> None:
        """Put a model under the trainer's care: mode, updates and checkpoints (in the folder `name`)."""
        if "_models" not in self.__dict__:
            raise AttributeError("register_model: call super().__init__() first")
        if name in self._models:
            raise KeyError(f"register_model: {name!r} is already registered")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """Return all registered names, or the given ones after checking them."""
        if names is None:
            return list(self._models)
        given = names if isinstance(names, list) else [names]
        for name in given:
            if name not in self._models:
                raise KeyError(f"no model {name!r}: registered are {list(self._models)}")
        return given

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Save each model as it is after epoch `epoch` (counted from 0) to `<directory>/<name>/`."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
            }
            save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Load the latest checkpoint of every model; return the next epoch, 0 if a checkpoint is missing."""
        folders = {name: os.path.join(directory, name) for name in self.get_model_names()}
        if not all(os.path.isfile(os.path.join(folder, "checkpoint")) for folder in folders.values()):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint in {directory}, resume training")
        start_epoch = 0
        for name, folder in folders.items():
            start_epoch = resume_from_checkpoint(folder, self._models[name], self._optims[name], self._scheds[name])
        return start_epoch

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights saved after `epoch` epochs, or the best ones; an empty `directory` loads nothing.

        Raises:
            FileNotFoundError: no such checkpoint.
        """
        if not directory:
            print("load_model: no directory given, so the model stays as it is")
            return
        file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            path = os.path.join(directory, name, file)
            if not os.path.exists(path):
                raise FileNotFoundError(f"no model at {path}")
            checkpoint = load_checkpoint(path)
            result = checkpoint.get("val_result")
            shown = "none" if result is None else f"{result:.1f}"
            print(f"Load {path} to {name} (epoch={checkpoint['epoch']}, val_result={shown})")
            self._models[name].load_state_dict(checkpoint["state_dict"])

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Switch models to "train", or to "eval" (also called "test")."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode {mode!r}: expected 'train', 'test' or 'eval'")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedulers."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise FloatingPointError if the loss is not finite."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def init_writer(self, log_dir: str) -> None:
        """Open the TensorBoard writer, if TensorBoard is installed."""
        if self._writer is None:
            self._writer = open_writer(log_dir)

    def close_writer(self) -> None:
        """Close the TensorBoard writer."""
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a value to TensorBoard, if the writer is open."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    def train(self, start_epoch: int | None = None, max_epoch: int | None = None) -> None:
        """Run the epochs from `start_epoch` to below `max_epoch`; `before_train` may change both."""
        self.start_epoch = self.start_epoch if start_epoch is None else start_epoch
        self.max_epoch = self.max_epoch if max_epoch is None else max_epoch
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        """Called once before the first epoch."""

    def after_train(self) -> None:
        """Called once after the last epoch."""

    def before_epoch(self) -> None:
        """Called before each epoch."""

    def after_epoch(self) -> None:
        """Called after each epoch."""

    def run_epoch(self) -> None:
        """Train for one epoch."""
        raise NotImplementedError

    def test(self) -> Any:
        """Evaluate the models."""
        raise NotImplementedError

    def parse_batch_train(self, *args: Any, **kwargs: Any) -> Any:
        """Take a training batch (or a labelled and an unlabelled one) apart and move it to the device."""
        raise NotImplementedError

    def parse_batch_test(self, batch: Any) -> Any:
        """Take a test batch apart and move it to the device."""
        raise NotImplementedError

    def forward_backward(self, *args: Any, **kwargs: Any) -> Any:
        """Take one training step; return the metrics to log as a dict."""
        raise NotImplementedError

    def model_inference(self, input: Any) -> Any:
        """Return the logits for a batch of images."""
        raise NotImplementedError

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        """Set the gradients of the optimised parameters to zero."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Check the loss and compute its gradients."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        """Step the optimisers."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        """Zero the gradients, compute them anew and step."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)
