"""The table of what is downloaded: complete, in the forms that the code expects, and where the readers look."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
import yaml

from dho_plugin.config import CONFIGS
from dho_plugin.data.sources import READERS, SOURCES, described_by
from dho_plugin.datasets import CATALOGUE, SHIFTS

ALL = [(name, source) for name, listed in SOURCES.items() for source in listed]
IDS = [f"{name}-{source.file}" for name, source in ALL]
# Servers that have the file by plain HTTP alone; the checksum stands for the transport.
PLAIN = ("http://data.vision.ee.ethz.ch/",)


def test_every_data_set_of_the_paper_has_its_entry():
    assert {kind.__name__ for kind in READERS.values()} == {
        *(described.name for described in CATALOGUE), "ImageNet", *SHIFTS["ImageNet"].values(),
    }  # fmt: skip
    assert list(READERS) == list(SOURCES)
    for name, kind in READERS.items():
        config = yaml.safe_load((CONFIGS / "datasets" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert config["DATASET"]["NAME"] == kind.__name__


@pytest.mark.parametrize(("name", "source"), ALL, ids=IDS)
def test_an_entry(name, source):
    assert re.fullmatch(r"(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})?", source.checksum)
    assert (
        source.url == "" or source.url.startswith(("https://", *PLAIN)) or re.fullmatch(r"drive:[\w-]{33}", source.url)
    )
    if source.url.startswith("http"):  # what can be checked is; on Drive nothing is published
        assert source.checksum and source.bytes
    if not source.url:
        assert source.steps or (source.elsewhere and source.checksum and source.bytes)
    assert source.file == PurePosixPath(source.file).name and source.moves
    for inside, place in source.moves:
        for path in (inside, place):
            assert not path.startswith("/") and ".." not in path.split("/")
    assert len({PurePosixPath(place).parent for place in source.places}) == 1  # so one rename puts each in place


def test_all_that_a_reader_opens_is_brought(tmp_path):
    for name, kind in READERS.items():
        place = kind.place(tmp_path)
        places = {tmp_path / path for source in SOURCES[name] for path in source.places}
        described = getattr(kind, "described", None)
        assert place.lists / (described.lists if described else "classnames.txt") in places
        if name == "stanford_cars":
            images = {place.images / "cars_train", place.images / "cars_test"}
        elif name == "imagenet":
            images = {place.images / "train", place.images / "val"}
        else:
            images = {place.images}
        assert images <= places


def test_the_split_files_are_those_of_the_catalogue():
    found = {described_by(source): source.url for _, source in ALL if described_by(source)}
    assert found == {described: f"drive:{described.drive}" for described in CATALOGUE if described.drive}
