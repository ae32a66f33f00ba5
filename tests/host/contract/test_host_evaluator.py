"""Classification results: the printed block, the returned values, the confusion matrix; and compute_accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dho_plugin import host

NAMES = {0: "ash", 1: "birch", 2: "cedar", 3: "elm"}
# True classes 0, 1 and 2; class 3 is predicted once but never true.
TRUE = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTED = torch.tensor([0, 0, 1, 1, 3, 0])


def _evaluate(cfg):
    evaluator = host.build_evaluator(cfg, lab2cname=NAMES)
    evaluator.process(torch.rand(4, 4), torch.zeros(4, dtype=torch.long))
    evaluator.reset()
    for part in (slice(0, 4), slice(4, 6)):
        evaluator.process(torch.eye(4)[PREDICTED[part]], TRUE[part])
    return evaluator.evaluate()


def test_the_result_block_is_what_log_parsers_expect(config, capsys: pytest.CaptureFixture[str]) -> None:
    results = _evaluate(config("VERBOSE", False))
    assert capsys.readouterr().out == (
        "=> result\n* total: 6\n* correct: 3\n* accuracy: 50.0%\n* error: 50.0%\n* macro_f1: 38.9%\n"
    )
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    # F1 of the true classes: 2*2/(3+3), 2*1/(2+2), 0. Class 3 does not enter the mean.
    assert results["macro_f1"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_large_totals_have_thousands_separators(config, capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = host.build_evaluator(config("VERBOSE", False))
    evaluator.process(torch.eye(2)[torch.zeros(2465, dtype=torch.long)], torch.zeros(2465, dtype=torch.long))
    evaluator.evaluate()
    assert "* total: 2,465\n* correct: 2,465\n" in capsys.readouterr().out


def test_per_class_result(config, capsys: pytest.CaptureFixture[str]) -> None:
    results = _evaluate(config("VERBOSE", False, "TEST.PER_CLASS_RESULT", True))
    assert capsys.readouterr().out.partition("=> per-class result\n")[2] == (
        "* class: 0 (ash)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n"
        "* class: 1 (birch)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n"
        "* class: 2 (cedar)\ttotal: 1\tcorrect: 0\tacc: 0.0%\n"
        "* average: 38.9%\n"
    )
    assert results["perclass_accuracy"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)


def test_per_class_result_needs_class_names(config) -> None:
    with pytest.raises((ValueError, AssertionError)):
        host.build_evaluator(config("TEST.PER_CLASS_RESULT", True))


def test_confusion_matrix_rows_are_shares_of_the_true_class(config, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _evaluate(config("TEST.COMPUTE_CMAT", True))
    # Dassl writes a numpy array, which a safe load refuses; the embedded engine writes a tensor.
    matrix = torch.load(tmp_path / "out" / "cmat.pt", weights_only=host.HOST == "embedded")
    expected = torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 0.5, 0, 0.5], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(matrix), expected)


def test_compute_accuracy_gives_percent_per_k() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1]])
    (top1,) = host.compute_accuracy(logits, torch.tensor([2, 1, 0, 1]))
    assert top1.shape == (1,)
    assert top1.item() == 50.0
    assert host.compute_accuracy((logits, None), torch.tensor([2, 1, 0, 1]))[0].item() == 50.0
