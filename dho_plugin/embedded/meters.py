"""Running averages of the losses and times that the log lines show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class AverageMeter:
    """Current value and average of a number.

    Args:
        ema: exponential moving average (factor 0.9, started at 0) instead of the mean.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self._val: float | Tensor = 0.0
        self._avg: float | Tensor = 0.0
        self._sum: float | Tensor = 0.0
        self.count: int = 0

    def update(self, val: float | Tensor, n: int = 1) -> None:
        """Add a value that stands for `n` samples. A tensor stays on its device until somebody reads."""
        self._val = val.detach().reshape(()).double() if isinstance(val, Tensor) else val
        self._sum = self._sum + self._val * n
        self.count += n
        self._avg = self._avg * 0.9 + self._val * 0.1 if self.ema else self._sum / self.count

    @property
    def val(self) -> float:
        """The last value."""
        return float(self._val)

    @property
    def sum(self) -> float:
        """Of all values, each times its number of samples."""
        return float(self._sum)

    @property
    def avg(self) -> float:
        """Their average."""
        return float(self._avg)


class MetricMeter:
    """One AverageMeter per name.

    Args:
        delimiter: between two metrics in the printed form `loss 0.1000 (0.2000)`.
    """

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, Any] | None) -> None:
        """Add one value per name; None adds nothing."""
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(f"expected a dict of metrics, such as {{'loss': 0.1}}, got {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def state_dict(self) -> dict[str, Any]:
        """Last value, sum and count by name."""
        return {name: [meter.val, meter.sum, meter.count] for name, meter in self.meters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for name, (val, total, count) in state.items():
            meter = self.meters[name]
            meter._val, meter._sum, meter.count, meter._avg = val, total, count, total / count

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
