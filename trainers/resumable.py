"""A run that goes on after any step as if it had never stopped, and that stops after a step when it is told to."""

from __future__ import annotations

import secrets
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import run_log, stopping
from ..distributed import agreed, gathered, is_main
from ..embedded.meters import MetricMeter
from ..embedded.stepping import steps
from ..embedded.trainer_base import open_writer
from ..errors import UsageError
from ..host import load_checkpoint
from ..manifest import read
from ..saved import best_so_far, load_part, resume_folder
from ..states import FOLDER, States, random_states, restore_random_states
from ..taken_over import take_over
from .evaluated import Evaluated


class Resumable(Evaluated):
    """Batches are pure functions of seed and step, so that weights, optimisers and a position are all that a run is.

    Attributes:
        resumed: whether the run goes on from an earlier process. meters: losses of the epoch so far.
    """

    batch_idx: int
    view_seed: int
    resumed = False
    _state: dict[str, Any] | None = None  # to go on from, until its epoch begins

    @cached_property
    def states(self) -> States:
        """In the output folder."""
        return States(Path(self.cfg.OUTPUT_DIR, FOLDER))

    def random_seed(self) -> int:
        """That of the run in the folder to go on with, else a new one, the same in all processes."""
        before = read(resume_folder(self.cfg))
        return before["view_seed"] if before else agreed(secrets.randbelow(2**31))

    def before_train(self) -> None:
        self.saved_at = time.monotonic()
        super().before_train()

    def run_epoch(self) -> None:
        self.num_batches = len(self.train_loader_x)
        self.meters, first = MetricMeter(), 0
        if self._state is not None:
            first = self._state["batch"]
            self.meters.load_state_dict(self._state["losses"])
            restore_random_states(self._state["random"])
            self._state = None
        self.train_loader_x.set_epoch(self.epoch, first)
        for _ in steps(self, ((batch,) for batch in self.train_loader_x), self.meters, first):
            self.after_step()

    def after_step(self) -> None:
        """Save where it is time to, and stop where that was asked for."""
        due = time.monotonic() - self.saved_at >= 60 * self.cfg.TRAIN.SAVE_MINUTES
        signal, due = divmod(agreed(2 * stopping.requested() + due), 2)
        done = self.batch_idx + 1
        if signal or due:
            self.save_state(self.epoch, done)
        if signal:
            raise stopping.Stopped(signal, f"after epoch {self.epoch + 1}, batch {done}/{self.num_batches}")

    def settle(self) -> None:
        """Choose what is chosen on validation images once the weights stand, before they are evaluated and saved."""

    def after_epoch(self) -> None:
        done, frequency = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        choosing = self.cfg.TEST.FINAL_MODEL == "best_val"
        saving = done == self.max_epoch or choosing or (frequency > 0 and done % frequency == 0)
        if saving and not self.states.folder.is_dir():
            # A run killed behind its first checkpoint would go on from that, without the random states.
            self.save_state(self.epoch, self.num_batches)
        try:
            if done == self.max_epoch or choosing:
                self.settle()
            super().after_epoch()
        except stopping.Stopped:
            self.save_state(self.epoch, self.num_batches)
            raise
        if saving:
            self.meters = MetricMeter()
            self.save_state(done, 0)

    def save_state(self, epoch: int, batch: int) -> None:
        """Leave all that the batches from this one on depend on in <output>/state; for all processes at once."""
        batches = self.train_loader_x.batches
        for known in gathered(batches.passed_over()):
            batches.pass_over(known)
        if is_main():
            if self._writer is not None:  # steps that are not taken again are not written again
                self._writer.flush()
            self.states.save(self.state(epoch, batch), epoch * self.num_batches + batch)
        self.saved_at = time.monotonic()

    def save_model(self, *args: Any, **keywords: Any) -> None:
        """As the host does, by the first process; the others wait."""
        if is_main():
            super().save_model(*args, **keywords)
        agreed(0)

    def init_writer(self, log_dir: str) -> None:
        """As the host does, in the first process; what is done again is shown once."""
        if is_main() and self._writer is None:
            batch = self._state["batch"] if self._state is not None else 0
            self._writer = open_writer(log_dir, self.start_epoch * len(self.train_loader_x) + batch)

    def shown_at(self, split: str | None) -> int | None:
        """The last step of the epoch, which is purged with it; the end of the run behind all steps."""
        if self._writer is None:
            return None
        steps = len(self.train_loader_x)
        return self.max_epoch * steps if split is None else (self.epoch + 1) * steps - 1

    def state(self, epoch: int, batch: int) -> dict[str, Any]:
        """Plain values and tensors, with the position to go on at; see `restore`."""
        return {
            "models": {name: module.state_dict() for name, module in self._models.items()},
            "optimizers": {name: part.state_dict() for name, part in self._optims.items() if part is not None},
            "schedulers": {name: part.state_dict() for name, part in self._scheds.items() if part is not None},
            "scaler": self.precision.scaler.state_dict(),
            "epoch": epoch,
            "batch": batch,
            "steps": self.num_batches,
            "best_result": self.best_result,
            "losses": self.meters.state_dict(),
            "random": random_states(),
            "unreadable": self.train_loader_x.batches.passed_over(),
            "log": run_log.length(self.cfg.OUTPUT_DIR),
        }

    def resume_model_if_exist(self, directory: str) -> int:
        """Go on from the newest whole state of a run, else from its checkpoints as Dassl does; return the epoch.

        Args:
            directory: what the host takes for the run's folder; see resume_folder.
        """
        directory = str(resume_folder(self.cfg)) if directory == self.cfg.RESUME else directory
        own = Path(directory).absolute() == Path(self.cfg.OUTPUT_DIR).absolute()
        state = States(Path(directory, FOLDER)).newest()
        if state is not None:
            self.restore(state, directory)
            self.resumed = True
            if own and state["log"] is not None:
                run_log.cut(directory, state["log"])
            where = f"epoch {state['epoch'] + 1}, after batch {state['batch']}/{state['steps']}"
            print(f"Going on in {directory} at {where}")
            return state["epoch"]
        start = self.resume_from_checkpoints(directory)
        self.resumed = start > 0
        best = best_so_far(self.cfg, self.get_model_names()) if start else None
        self.best_result = self.best_result if best is None else best
        if own and not start and read(Path(directory)):
            run_log.cut(directory, 0)  # of this very run, which begins anew
        return start

    def resume_from_checkpoints(self, directory: str) -> int:
        """As the host does; under --resume-force optimisers and schedules are looked at first. Return the epoch."""
        if not self.cfg.TRAIN.RESUME_FORCE:
            return super().resume_model_if_exist(directory)
        kept = self._optims, self._scheds
        self._optims, self._scheds = (dict.fromkeys(parts) for parts in kept)
        try:
            start = super().resume_model_if_exist(directory)
        finally:
            self._optims, self._scheds = kept
        if start:
            folders = {name: Path(directory, name) for name in self._optims}
            files = {name: folder / (folder / "checkpoint").read_text().strip() for name, folder in folders.items()}
            saved = {name: load_checkpoint(str(file)) for name, file in files.items()}
            optimizers, schedules = (
                {name: one.get(kind) for name, one in saved.items()} for kind in ("optimizer", "scheduler")
            )
            take_over(self._optims, self._scheds, (optimizers, schedules), start)
        return start

    def restore(self, state: dict[str, Any], directory: str) -> None:
        """Take over what `state` returned.

        Raises:
            UsageError: it does not fit this model, or the data have another number of steps.
        """
        if state["steps"] != len(self.train_loader_x):
            raise UsageError(
                f"{directory} holds a run of {state['steps']} steps an epoch, which would be "
                f"{len(self.train_loader_x)} with the images that are there now: choose another --output-dir"
            )
        for name, module in self._models.items():
            load_part(f"{directory}/state", module, state["models"].get(name, {}))
        if self.cfg.TRAIN.RESUME_FORCE:
            theirs, done = (state["optimizers"], state["schedulers"]), state["batch"] == state["steps"]
            take_over(self._optims, self._scheds, theirs, state["epoch"] + done)
        else:
            for parts, kind in ((self._optims, "optimizers"), (self._scheds, "schedulers")):
                for name, part in parts.items():
                    if part is not None:
                        part.load_state_dict(state[kind][name])
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        self.best_result = state["best_result"]
        self.train_loader_x.batches.pass_over(state["unreadable"])
        self.epoch = state["epoch"] - (state["batch"] == 0)  # the last one of which a step was taken
        self._state = state

    def over(self) -> None:
        """Remove the states of a run whose results are all written."""
        if is_main():
            self.states.clear()
