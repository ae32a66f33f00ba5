"""data doctor: what it says of good, half-copied and missing sets, its exit status, and that docs/data.md quotes it."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import layouts
import pytest
import tiny
from PIL import Image
from test_catalogue import YAML

from dho_plugin import leaks
from dho_plugin.__main__ import main as command
from dho_plugin.data import doctor, examine, files
from dho_plugin.datasets import CATALOGUE
from dho_plugin.datasets.layouts import NEAR
from dho_plugin.errors import UsageError
from dho_plugin.host import Datum

PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"
SPLIT = "split_zhou_DescribableTextures.json"


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    return layouts.write_all(tmp_path_factory.mktemp("fifteen"))


@pytest.fixture
def dtd(everything, tmp_path) -> Path:
    """A copy of one set's folder, in a root of its own."""
    return Path(shutil.copytree(everything / "dtd", tmp_path / "data" / "dtd"))


def run(capsys, *words: str) -> tuple[int, str]:
    capsys.readouterr()
    status = doctor.main(list(words))
    return status, capsys.readouterr().out


def on(capsys, folder: Path, *words: str) -> tuple[int, str]:
    return run(capsys, "--dataset", "dtd", "--root", str(folder.parent), *words)


def test_all_fifteen_miniatures_are_found(everything, capsys):
    assert set(doctor.NAMES) == {*YAML.values(), *(f"imagenet{end}" for end in ("", "v2", "_sketch", "_r", "_a"))}
    status, out = run(capsys, "--root", str(everything))
    assert status == 0
    for name in doctor.NAMES:
        assert f"{name}: found, a run would start\n" in out
    assert out.endswith("15 data sets: 15 ready, 0 found but not ready, 0 partly found, 0 missing\n")
    assert out.count("unreadable images: none") == 15
    assert out.count("for testing only") == 4
    assert "class order: 0 n01440764 tench ... 5 n03710721 tank suit (by WordNet id)" in out
    assert "counts: 3 classes; train 18, val 15, test 6; Table 10 has 47 classes; train 2,820, val 1,128," in out
    assert "train 24, val 0, test 12; Table 10 has 1,000 classes; train 1,281,167, val 0, test 50,000:" in out


def test_the_published_numbers(everything, capsys, monkeypatch):
    assert {name: tuple(numbers) for name, numbers in examine.PUBLISHED.items() if name.startswith("ImageNet")} == {
        "ImageNet": (1000, 1281167, 0, 50000),
        "ImageNetV2": (1000, 0, 0, 10000),
        "ImageNetSketch": (1000, 0, 0, 50889),
        "ImageNetA": (200, 0, 0, 7500),
        "ImageNetR": (200, 0, 0, 30000),
    }
    monkeypatch.setitem(examine.PUBLISHED, "DescribableTextures", (3, 18, 15, 6))
    _, out = on(capsys, everything / "dtd")
    assert "counts: 3 classes; train 18, val 15, test 6, as in the paper's Table 10\n" in out


def test_an_empty_root(tmp_path, capsys):
    status, out = run(capsys, "--root", str(tmp_path))
    assert status == 1
    assert "15 data sets: 0 ready, 0 found but not ready, 0 partly found, 15 missing" in out
    for name in doctor.NAMES:
        assert f"{name}: missing\n    looked for: {tmp_path}/" in out
        assert f"get it: python -m dho_plugin data fetch --dataset {name} --root {tmp_path}\n" in out


def test_of_all_a_missing_set_does_not_count_beside_a_good_one(dtd, capsys):
    assert run(capsys, "--root", str(dtd.parent))[0] == 0
    assert run(capsys, "--dataset", "dtd,eurosat", "--root", str(dtd.parent))[0] == 1
    shutil.rmtree(dtd / "images" / "banded")
    status, out = run(capsys, "--root", str(dtd.parent))
    assert status == 1
    assert "0 ready, 0 found but not ready, 1 partly found, 14 missing" in out


def test_missing_images_are_counted_and_named(dtd, capsys):
    (dtd / "images/zigzagged/zigzagged_0003.jpg").unlink()
    shutil.rmtree(dtd / "images/banded")
    (dtd / "images/polka-dotted/polka-dotted_0001.jpg").write_bytes(b"")
    status, out = on(capsys, dtd)
    assert status == 1
    assert out.startswith("dtd: partly found\n    a run would not start: missing folder ")
    first = [f"{dtd}/images/banded/banded_{n:04d}.jpg" for n in (1, 2, 3)]
    assert f"missing images: 14 of the 39 listed, first {', '.join(first)}\n" in out
    assert f"unreadable images: 1 (25 files; opened, not decoded: --decode does that)\n        {dtd}" in out
    assert "polka-dotted_0001.jpg: empty" in out


def test_images_one_folder_too_deep_are_pointed_to(everything, tmp_path, capsys):
    cars = Path(shutil.copytree(everything / "stanford_cars", tmp_path / "stanford_cars"))
    (cars / "cars_train").rename(cars / "inner")
    (cars / "cars_train").mkdir()
    (cars / "inner").rename(cars / "cars_train" / "cars_train")  # as an archive of another source has it
    _, out = run(capsys, "--dataset", "stanford_cars", "--root", str(tmp_path))
    assert "missing images: 44 of the 52 listed" in out
    assert f"lies in {cars}/cars_train/cars_train: the images of {cars}/cars_train?\n" in out


@pytest.mark.parametrize("content", ['{"train": [["banded', "[]", '{"train": 3}', "\udcff"])
def test_a_broken_split_file(dtd, capsys, content):
    (dtd / SPLIT).write_bytes(content.encode(errors="surrogateescape"))
    status, out = on(capsys, dtd)
    assert status == 1
    assert f"dtd: partly found\n    a run would not start: {dtd / SPLIT} is not a split file" in out
    assert "unreadable images: none (39 files" in out


def test_a_missing_and_a_misplaced_split_file(dtd, capsys):
    (dtd / SPLIT).rename(dtd.parent / SPLIT)
    status, out = on(capsys, dtd)
    assert status == 1
    here, there = dtd / SPLIT, dtd.parent / SPLIT
    assert f"looked for at {here}, and lies at {there}: mv {there} {here}\n" in out
    assert "get it" not in out
    (dtd.parent / SPLIT).unlink()
    _, out = on(capsys, dtd)
    assert f"no split file at {dtd / SPLIT}. Get CoOp's with: gdown" in out
    assert "get it: python -m dho_plugin data fetch --dataset dtd" in out


def test_a_misplaced_split_file_alone_is_not_nothing(dtd, capsys):
    shutil.rmtree(dtd / "images")
    (dtd / SPLIT).rename(dtd.parent / SPLIT)
    assert on(capsys, dtd)[1].startswith("dtd: partly found\n")


def test_unreadable_images(dtd, capsys):
    html, cut = dtd / "images/banded/banded_0001.jpg", dtd / "images/banded/banded_0002.jpg"
    html.write_text("<html>quota exceeded</html>")
    tiny.write_image(cut, tiny.np.random.default_rng(0), 0, (64, 64))
    cut.write_bytes(cut.read_bytes()[:-500])
    status, out = on(capsys, dtd)
    assert status == 1
    assert out.startswith("dtd: found, but a run would stop: 1 of its images cannot be read\n")
    assert f"        {html}: UnidentifiedImageError" in out and str(cut) not in out
    status, out = on(capsys, dtd, "--decode")
    assert "unreadable images: 2 (39 files; decoded)" in out and f"{cut}: OSError" in out


def test_decoding_applies_the_rule_of_training(dtd, capsys):
    Image.new("RGB", (600, 1)).save(dtd / "images/banded/banded_0001.jpg")
    assert on(capsys, dtd)[0] == 0
    status, out = on(capsys, dtd, "--decode")
    assert status == 1 and "600 x 1 pixels, more than 500 times as long as wide" in out


def test_of_a_large_set_a_sample_is_opened(dtd, capsys, monkeypatch):
    monkeypatch.setattr(files, "SAMPLE", 10)
    opened = []
    real = files.fault
    monkeypatch.setattr(files, "fault", lambda path, decode: opened.append(path) or real(path, decode=decode))
    _, out = on(capsys, dtd)
    assert "unreadable images: none (10 of 39 files, evenly spaced; opened" in out
    assert opened == [sorted(map(str, (dtd / "images").rglob("*.jpg")))[i * 39 // 10] for i in range(10)]
    _, out = on(capsys, dtd, "--decode")
    assert "(39 files; decoded)" in out


def test_files_that_no_split_names_are_no_finding(dtd, capsys):
    before = on(capsys, dtd)
    (dtd / "images/banded/Thumbs.db").write_text("junk")
    (dtd / "labels").mkdir()
    assert on(capsys, dtd) == before


def test_images_in_two_splits(dtd, capsys, monkeypatch):
    one, other = dtd / "images/banded/banded_0001.jpg", dtd / "images/banded/banded_0013.jpg"
    shutil.copyfile(one, other)
    status, out = on(capsys, dtd)
    assert status == 0 and "dtd: found, a run would start" in out  # a published split's own duplicates are let pass
    assert f"overlap: 1 test images are train images (by content), first {one} = {other}\n" in out
    for module in (examine, leaks):  # as of a larger set
        monkeypatch.setattr(module, "MAX_COMPARED", 5)
    status, out = on(capsys, dtd)
    assert status == 0 and "overlap: no image stands in two of train, val and test (by path; --content" in out
    assert "overlap: 1 test images are train images (by content)" in on(capsys, dtd, "--content")[1]
    other.unlink()
    other.symlink_to(one)
    status, out = on(capsys, dtd)
    assert status == 1 and "overlap: 1 test images are train images (by path" in out


def test_shots(dtd, capsys, monkeypatch):
    assert "shots: --shots 16: 3 classes have fewer training images: banded (6), polka" in on(capsys, dtd)[1]
    monkeypatch.setattr(examine, "SHOTS", 6)
    assert "shots: up to 6 a class\n" in on(capsys, dtd)[1]


def test_coops_caches(dtd, capsys):
    item = Datum(impath=str(dtd / "images/banded/banded_0001.jpg"), label=0, classname="banded")
    layouts.write_cache(dtd / "split_fewshot" / "shot_1-seed_1.pkl", train=[item], val=[item])
    status, out = on(capsys, dtd)
    assert status == 0 and f"CoOp's caches: 1 that can be read safely, in {dtd}\n" in out
    evil = dtd / "split_fewshot" / "shot_2-seed_1.pkl"
    evil.write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    status, out = on(capsys, dtd)
    assert f"CoOp's cache: {evil} is no split as CoOp caches it (it asks for 'os.system'" in out
    assert not Path("canary").exists()


def test_numbered_folders_count_as_numbers(tmp_path, capsys):
    folder, rng = tmp_path / "imagenetv2", tiny.np.random.default_rng(0)
    for label in range(12):
        tiny.write_image(folder / "imagenetv2-matched-frequency-format-val" / str(label) / "x.jpeg", rng, 0)
    names = "".join(f"n{label:08d} name {label}\n" for label in range(12))
    (folder / "classnames.txt").write_text(names)
    status, out = run(capsys, "--dataset", "imagenetv2", "--root", str(tmp_path))
    assert status == 0
    assert "class order: 0 n00000000 name 0 ... 11 n00000011 name 11 (folders by number)" in out
    (folder / "imagenetv2-matched-frequency-format-val" / "extra").mkdir()
    status, out = run(capsys, "--dataset", "imagenetv2", "--root", str(tmp_path))
    assert status == 1 and "imagenetv2: partly found" in out


def test_validation_images_without_class_folders(everything, tmp_path, capsys):
    folder = Path(shutil.copytree(everything / "imagenet", tmp_path / "imagenet"))
    val = folder / "images" / "val"
    for file in sorted(val.rglob("*.JPEG")):
        file.rename(val / file.name)
    for entry in val.iterdir():
        if entry.is_dir():
            entry.rmdir()
    status, out = run(capsys, "--dataset", "imagenet", "--root", str(tmp_path))
    assert status == 1
    assert f"{val} holds 12 files and no class folders" in out and "valprep.sh, run in that folder" in out


def test_no_set_stops_the_others(everything, tmp_path, capsys, monkeypatch):
    for name in ("dtd", "eurosat"):
        shutil.copytree(everything / name, tmp_path / name)
    monkeypatch.setattr(examine, "_contents", lambda *_: 1 / 0)
    status, out = run(capsys, "--dataset", "dtd,eurosat", "--root", str(tmp_path))
    assert status == 1
    assert out.count("a run would not start: ZeroDivisionError: division by zero") == 2
    monkeypatch.undo()
    real = examine.build_dataset

    def fails(cfg):
        if cfg.DATASET.NAME == "EuroSAT":
            raise PermissionError(13, "Permission denied")
        return real(cfg)

    monkeypatch.setattr(examine, "build_dataset", fails)
    _, out = run(capsys, "--dataset", "eurosat,dtd", "--root", str(tmp_path))
    assert "eurosat: partly found\n    a run would not start: PermissionError" in out and "2750\n" in out
    assert "dtd: found, a run would start" in out


def test_names_with_control_characters_make_no_lines(tmp_path, capsys):
    root = tmp_path / "a\ndtd: found, a run would start"
    layouts.write(root, "EuroSAT")
    split = layouts.write(tmp_path, "EuroSAT") / "split_zhou_EuroSAT.json"
    text = split.read_text().replace("Forest/Forest_1.jpg", r"a\ndtd: found")
    split.write_text(text.replace("Sea or Lake", r"\ndtd: found\u0085"))
    for folder in (root, tmp_path):
        _, out = run(capsys, "--dataset", "eurosat,dtd", "--root", str(folder))
        starts = ("    ", "eurosat: partly", "dtd: partly", "dtd: missing", "2 data sets:")
        assert all(line.startswith(starts) for line in out.splitlines() if line)
        assert r"a\ndtd: found" in out
    (tmp_path / "eurosat/2750/a\ndtd: found").write_bytes(b"")
    _, out = run(capsys, "--dataset", "eurosat", "--root", str(tmp_path))
    assert "eurosat: found" in out and r"2 \ndtd: found\x85" in out and r"2750/a\ndtd: found: empty" in out
    assert all(line.startswith(("    ", "eurosat: found", "1 data set:")) for line in out.splitlines() if line)
    fake = "dtd\x1b[2J\neurosat: found"
    tiny.write_image(tmp_path / "own/labeled" / fake / "a.jpg", tiny.np.random.default_rng(0), 0)
    tiny.write_image(tmp_path / "own/labeled/b/b.jpg", tiny.np.random.default_rng(1), 0)
    _, out = run(capsys, "--data", str(tmp_path / "own"))
    assert "\x1b" not in out and not [line for line in out.splitlines() if line.startswith("eurosat")]


def test_images_of_ones_own(tmp_path, capsys):
    rng = tiny.np.random.default_rng(0)
    for place in ("labeled/cat", "labeled/dog", "test/cat", "unlabeled"):
        tiny.write_image(tmp_path / "own" / place / "a.jpg", rng, 0)
    own = str(tmp_path / "own")
    status, out = run(capsys, "--data", own)
    assert status == 0 and out.startswith(f"{own}: found, a run would start\n")
    assert "counts: 2 classes; 2 labelled, 1 unlabelled, 0 validation, 1 test images\n" in out
    assert "class order: 0 cat ... 1 dog\n" in out
    shutil.copyfile(f"{own}/labeled/cat/a.jpg", f"{own}/test/cat/b.jpg")
    status, out = run(capsys, "--data", own)
    assert status == 1 and "a run would not start: 1 images stand in two of training, val and test" in out
    table = tmp_path / "own" / "list.csv"
    table.write_text("path,label\nlabeled/cat/a.jpg,cat\nlabeled/dog/a.jpg,dog\n")
    assert run(capsys, "--data", str(table))[0] == 0


def test_wrong_commands(tmp_path, capsys):
    with pytest.raises(UsageError, match=r"--dataset 'dtdd': expected one of .* Did you mean 'dtd'\?"):
        doctor.main(["--dataset", "dtdd", "--root", str(tmp_path)])
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match=rf"no folder {tmp_path}/nowhere; {tmp_path} holds \['there'\]"):
        doctor.main(["--root", str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match="no --root"):
        doctor.main([])
    with pytest.raises(UsageError, match="--data says it all"):
        doctor.main(["--data", str(tmp_path), "--root", str(tmp_path)])
    with pytest.raises(UsageError, match=rf"no folder {tmp_path}/nowhere"):
        doctor.main(["--data", str(tmp_path / "nowhere")])
    assert command(["data", "doctor", "--root", str(tmp_path / "nowhere")]) == 2
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--help"])
    assert stopped.value.code == 0
    assert " ".join(doctor.STATUS.split()) in " ".join(capsys.readouterr().out.split())


def examples() -> list[tuple[list[str], str]]:
    """The commands of docs/data.md and the outputs that stand below them."""
    found = re.findall(
        r"^```bash\npython -m dho_plugin data doctor (.*?)\n```\n+```text\n(.*?)^```",
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    return [(shlex.split(words), output) for words, output in found]


def scene(number: int, root: Path) -> None:
    """What lies below /data in the page's three examples: nothing; a half-copied set; two good ones."""
    root.mkdir()
    if number == 0:
        return
    folder = layouts.write(root, "DescribableTextures")
    if number == 1:
        shutil.rmtree(folder / "images/zigzagged")
        (folder / "images/banded/banded_0002.jpg").write_bytes(b"")
    else:
        tiny.imagenet_tree(root)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_page_quotes_what_is_printed(number, tmp_path, capsys):
    words, output = examples()[number]
    scene(number, tmp_path / "data")
    assert words[words.index("--root") + 1] == "/data"
    status, out = run(capsys, *(word.replace("/data", str(tmp_path / "data")) for word in words))
    assert status == int(number < 2)
    assert out.replace(str(tmp_path / "data"), "/data") == output
    assert len(examples()) == 3


def test_the_page_has_every_layout():
    text = PAGE.read_text(encoding="utf-8")
    for described in CATALOGUE:
        images = "cars_train/` and `cars_test" if described.name == "StanfordCars" else described.images
        assert f"| `{YAML[described.name]}` | `{described.folder}/` | `{images}/` | `{described.lists}`" in text
    assert all(f"| `{folder}/` |" in text for folder in NEAR)
