"""How a trained model is asked: over the classes of a test set, after training or from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..classes import ClassList, class_bound_states, class_list
from ..distributed import shared_out
from ..embedded.stepping import evaluation
from ..errors import UsageError
from ..host import TrainerX, build_evaluator
from ..precision import Precision
from ..predicting import printable
from ..saved import load_part, read_checkpoint
from ..stopping import check

T = TypeVar("T")


class Evaluated(TrainerX):
    """A trainer whose model is evaluated over the classes of a test set, and loaded over those it was trained on.

    Attributes:
        classes: what the model tells apart. test_classes: those of the dataset at hand. test_rows: which of the first
            the test set asks about, None for all.
    """

    classes: ClassList
    test_classes: ClassList
    test_rows: Tensor | None
    precision: Precision

    def learned(self) -> dict[str, nn.Module]:
        """Return what is trained and saved, by the name of its checkpoint folder."""
        raise NotImplementedError

    def frozen_parts(self) -> dict[str, nn.Module]:
        """Return what is saved and loaded beside the learned parts but not trained, by checkpoint folder."""
        return {}

    def model_inference(self, images: Tensor) -> Tensor:
        with self.precision.autocast():
            logits = self.model(images).float()
        return logits if self.test_rows is None else logits[:, self.test_rows]

    def test(self, split: str | None = None) -> float:
        """Evaluate; the accuracy in percent stays in `last_accuracy`, since Dassl's train() returns nothing.

        Where there are no images to evaluate it is nan: the hosts would divide by their number.
        """
        validation = (split or self.cfg.TEST.SPLIT) == "val" and self.val_loader is not None
        if self.test_loader is None and not validation:
            print(f"{self.cfg.DATASET.NAME} has no test images here: nothing is evaluated")
            self.last_accuracy = math.nan
        else:
            answers = partial(self.answers, model=self.model_inference)
            self.last_accuracy = evaluation(self, split, answers, self.shown_at(split))
        return self.last_accuracy

    def shown_at(self, split: str | None) -> int | None:
        """The step at which TensorBoard shows an evaluation; None for the number of the epoch."""
        return None

    def answers(self, loader: DataLoader, model: Callable[[Tensor], T]) -> Iterator[tuple[T, Tensor]]:
        """What a model says of the images of a loader, and their labels, batch by batch.

        Raises:
            Stopped: a signal has come.
        """

        def answer(batch: dict[str, Any]) -> tuple[T, Tensor]:
            images, labels = self.parse_batch_test(batch)
            return model(images), labels

        # disable=None: no progress bar where stderr is not a terminal.
        for found in tqdm(shared_out(loader, answer), total=len(loader), disable=None):
            check("in an evaluation")
            yield found

    # Checkpoints

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load what `learned` names, whatever classes the dataset at hand has.

        Parts that are bound to classes (heads, class-specific contexts) are loaded over the classes they were trained
        on, and those of the dataset at hand are then picked from them by id. A generic context serves any classes.

        Args:
            directory: the run's output folder. epoch: of the checkpoint; None for the best, else the last.
        """
        if not directory:
            raise UsageError("no model to load: give the output folder of a training run (--model-dir)")
        states = {name: read_checkpoint(Path(directory), name, epoch)["state_dict"] for name in self.loaded_parts()}
        lists = [found for name, state in states.items() for found in class_bound_states(self._models[name], state)]
        if lists:
            self.load_over(lists[0])
        for name in self.loaded_parts():
            load_part(f"{directory}/{name}", self._models[name], states[name])

    def load_over(self, trained_on: ClassList) -> None:
        """Rebuild the model over the classes of a checkpoint, and find the classes of the dataset at hand in them."""
        self.test_rows = trained_on.rows(self.test_classes)
        if trained_on != self.classes:
            self.classes = trained_on
            self.build_model()

    def loaded_parts(self) -> list[str]:
        """Parts of the model that an evaluation needs from a checkpoint."""
        return [*self.learned(), *self.frozen_parts()]

    # Other test sets

    @contextmanager
    def testing_on(self, dataset: Any, output: str = "") -> Iterator[None]:
        """Within this context `test()` evaluates the test images of another dataset, over its own classes.

        Args:
            dataset: a Dassl dataset whose classes are among those the model was trained on.
            output: folder for what the evaluator saves, so that the run's own results stay; empty for the run's.
        """
        kept = self.test_rows, self.test_loader, self.evaluator, self._writer
        self._writer = None
        self.test_rows = self.classes.rows(class_list(dataset))
        self.test_loader = self.dm.evaluation_loader(dataset.test)
        quiet = self.cfg.clone()
        quiet.defrost()
        quiet.VERBOSE = False
        quiet.OUTPUT_DIR = output or quiet.OUTPUT_DIR
        shown = {label: printable(name) for label, name in dataset.lab2cname.items()}
        self.evaluator = build_evaluator(quiet, lab2cname=shown)
        try:
            yield
        finally:
            self.test_rows, self.test_loader, self.evaluator, self._writer = kept
