"""Counter-based random numbers: pure functions of integers, the same on every machine and in every version."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: uint64 -> uint64, one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash64(*words: int | np.ndarray) -> np.ndarray:
    """One random uint64 from any integers, each mixed into the state in turn; arrays broadcast."""
    state = np.asarray(np.uint64(0))
    with np.errstate(over="ignore"):
        for word in words:
            state = mix64(state ^ (np.asarray(word).astype(np.uint64) + GOLDEN))
    return np.asarray(state)


def unit_interval(bits: np.ndarray) -> np.ndarray:
    """uint64 -> float64 in [0, 1), from the upper 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(*words: int | np.ndarray) -> np.ndarray:
    """hash64 as float64 in [0, 1)."""
    return unit_interval(hash64(*words))
