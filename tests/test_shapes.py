from __future__ import annotations

import threading
from collections import Counter

import dho_plugin.trainers  # noqa: F401 - adds configuration keys
import pytest
import torch
from PIL import Image

from dho_plugin.classes import class_list
from dho_plugin.datasets import SHIFTS, shapes_tree
from dho_plugin.datasets.drawn import STAMP
from dho_plugin.datasets.shapes_render import CLASS_IDS, CLASS_NAMES, DOMAINS, render
from dho_plugin.datasets.shapes_tree import build_shapes_tree
from dho_plugin.errors import UsageError
from dho_plugin.host import DATASET_REGISTRY, get_cfg_default
from dho_plugin.vlm import BUNDLED, load_vlm


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return build_shapes_tree(tmp_path_factory.mktemp("shapes"))


def dataset(root, name: str, shots: int = -1):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = str(root), shots
    return DATASET_REGISTRY.get(name)(cfg)


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_image_depends_on_seed_domain_class_and_number_alone(domain):
    labels, numbers = torch.arange(0, 32, 5), torch.arange(7)
    together = render(domain, labels, numbers, 3)
    assert together.shape == (7, 3, 32, 32) and together.dtype == torch.uint8
    for i in (6, 2):
        assert torch.equal(render(domain, labels[i : i + 1], numbers[i : i + 1], 3)[0], together[i])
    assert not torch.equal(render(domain, labels, numbers, 4), together)
    assert not torch.equal(render(domain, labels, numbers + 1, 3), together)


def test_domains_and_classes_differ():
    one, number = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    pictures = {render(domain, one, number, 0).numpy().tobytes() for domain in DOMAINS}
    assert len(pictures) == len(DOMAINS)
    assert len({render("test", torch.tensor([c]), number, 0).numpy().tobytes() for c in range(32)}) == 32


def test_ids_are_sorted_so_that_folder_order_is_label_order():
    assert list(CLASS_IDS) == sorted(CLASS_IDS) and len(set(CLASS_IDS)) == len(set(CLASS_NAMES)) == 32


def test_the_tree_is_imagenets_layout(root):
    shapes = dataset(root, "Shapes", shots=16)
    assert Counter(item.label for item in shapes.train_x) == dict.fromkeys(range(32), 16)
    assert (len(shapes.val), len(shapes.test)) == (320, 1600)
    for column, name in SHIFTS["Shapes"].items():
        shift = dataset(root, name)
        classes = 16 if column in "RA" else 32
        assert (shift.num_classes, len(shift.test)) == (classes, 25 * classes), name
        rows = class_list(shapes).rows(class_list(shift))
        assert (rows is None) == (classes == 32)
        if rows is not None:
            assert [shapes.lab2cname[row] for row in rows.tolist()] == list(shift.classnames)


def test_train_and_test_share_no_picture(root):
    shapes = dataset(root, "Shapes")
    train = {Image.open(item.impath).tobytes() for item in shapes.train_x}
    assert not train & {Image.open(item.impath).tobytes() for item in shapes.test}


def test_a_second_build_does_nothing_and_two_at_once_are_safe(root, tmp_path, monkeypatch):
    stamp = root / "shapes" / STAMP
    before = stamp.stat().st_mtime_ns
    build_shapes_tree(root)
    assert stamp.stat().st_mtime_ns == before
    small = {name: tuple((*p[:3], 1, p[4][:2], p[5]) for p in parts) for name, parts in shapes_tree._SETS.items()}
    monkeypatch.setattr(shapes_tree, "_SETS", small)
    threads = [threading.Thread(target=build_shapes_tree, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(small)
    assert len(list((tmp_path / "shapes").rglob("*.png"))) == 6


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not written by this demo"):
        build_shapes_tree(tmp_path)
    assert (tmp_path / "shapes" / "precious.txt").read_text() == "mine"


def accuracy(vlm, domain: str, prompt: str, seed: int = 77) -> float:
    labels = torch.arange(32).repeat_interleave(10)
    images = render(domain, labels, torch.arange(10).repeat(32), seed)
    with torch.no_grad():
        features = vlm.encode_image(vlm.normalize(images))
    return 100 * (features @ vlm.class_embeddings(CLASS_NAMES, [prompt]).T).argmax(-1).eq(labels).float().mean().item()


def test_the_models_are_what_the_demo_says_they_are():
    """On pictures of another seed: the teacher is better everywhere, and the student's names are the fault."""
    assert set(BUNDLED) == {"shapes-student", "shapes-teacher"}
    student, teacher = load_vlm("shapes-student"), load_vlm("shapes-teacher")
    default = "a photo of a {}."
    for domain in ("test", "v2", "sketch", "rendition", "adversarial"):
        assert accuracy(teacher, domain, default) > accuracy(student, domain, default) + 5, domain
    assert accuracy(student, "test", "a catalogue image of a {}.") > accuracy(student, "test", default) + 5
    assert accuracy(student, "adversarial", default) > 2 * 100 / 32
