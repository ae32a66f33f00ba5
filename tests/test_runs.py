"""A run loaded again has the images that its seed drew, and leaves the random states of others alone."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import runs
import torch

from dho_plugin.runs import load_run, run_dataset


@pytest.fixture(scope="module")
def few_shot_run(pets, tmp_path_factory):
    """A run on two of six labelled images and two of five validation images a class, and the datasets' root."""
    folder = tmp_path_factory.mktemp("few_shot")
    runs.run(pets, "LinearProbe", folder, dataset="oxford_pets")
    return folder, pets


def test_the_split_is_that_of_the_run(few_shot_run):
    folder, root = few_shot_run
    split = json.loads((folder / "split.json").read_text())
    for state in range(3):
        random.seed(state)
        for dataset in (run_dataset(folder), load_run(folder).dm.dataset):
            for name, items in (("labeled", dataset.train_x), ("validation", dataset.val)):
                assert sorted(item.impath for item in items) == [f"{root}/{path}" for path, _, _ in split[name]]


def test_random_states_are_left_alone(few_shot_run):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    wanted = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    load_run(few_shot_run[0])
    assert draw() == wanted
