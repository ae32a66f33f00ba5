"""Running real code on tensors without numbers: shapes, dtypes and memory are right, and nothing is computed.

Within `weightless()` every floating-point tensor of more than one number that is made, so every weight of every model,
is a `Shape`, and so is whatever is computed from one. Whole numbers stay real, since sizes hang on them. A model of any
size is there in seconds, and a step takes what its Python takes. What asks for a Shape's numbers fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_NEW = ("empty", "zeros", "ones", "rand", "randn", "normal")  # what weights are made by


class Memory:
    """Bytes of all Shapes that live, views counted once with what they look at. peak: the most since it was set."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def add(self, count: int) -> None:
        self.live += count
        self.peak = max(self.peak, self.live)


class _Block:
    """The memory of one or several Shapes; it is given back with the last of them."""

    def __init__(self, memory: Memory, size: int) -> None:
        self.memory, self.size = memory, size
        memory.add(size)

    def __del__(self) -> None:
        self.memory.add(-self.size)


MEMORY = Memory()
_BLOCKS: WeakValueDictionary[int, _Block] = WeakValueDictionary()


class Shape(Tensor):
    """A tensor on the CPU without numbers.

    Attributes:
        meta: the same on torch's meta device, where torch works out what becomes of it and what shares its memory.
    """

    meta: Tensor
    _block: _Block

    @staticmethod
    def __new__(cls, meta: Tensor) -> Shape:
        at = meta.storage_offset()
        self: Shape = Tensor._make_wrapper_subclass(
            cls, meta.size(), strides=meta.stride(), storage_offset=at, dtype=meta.dtype, device=torch.device("cpu")
        )
        self._hold(meta)
        return self

    def _hold(self, meta: Tensor) -> None:
        storage = meta.untyped_storage()
        block = _BLOCKS.get(storage._cdata)
        if block is None:
            block = _BLOCKS[storage._cdata] = _Block(MEMORY, storage.nbytes())
        self.meta, self._block = meta, block

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        if name.endswith("_") and not name.startswith("_"):
            return args[0]  # changed in place: in its numbers alone
        if "device" in kwargs:
            kwargs["device"] = "meta"
        args, kwargs = tree_map(_to_meta, (args, kwargs))
        return tree_map(_from_meta, func(*args, **kwargs))


def _to_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if not isinstance(value, Shape):
        return value.detach().to("meta")
    if value.meta.dtype != value.dtype:  # Module.half() has put other data into a parameter
        value._hold(value.meta.to(value.dtype))
    return value.meta


def _from_meta(value: Any) -> Any:
    return Shape(value) if isinstance(value, Tensor) and value.is_meta else value


class _Weightless(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        new = func.overloadpacket.__name__ in _NEW and isinstance(made, Tensor) and not isinstance(made, Shape)
        if not new or not made.is_floating_point() or made.numel() < 2 or _tensors(args, kwargs):
            return made
        return empty(made.shape, made.dtype)


def _tensors(*values: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(values))


def empty(size: Sequence[int], dtype: torch.dtype = torch.float32) -> Shape:
    """A new Shape."""
    return Shape(torch.empty(size, dtype=dtype, device="meta"))


@contextmanager
def weightless() -> Iterator[Memory]:
    """Within this context new floating-point tensors have no numbers; see above."""
    with _Weightless():
        yield MEMORY


def storage_of(tensor: Tensor) -> tuple[int, int]:
    """What tells a tensor's memory from others as long as it lives, and its size in bytes; of a Shape too."""
    storage = (_to_meta(tensor) if isinstance(tensor, Shape) else tensor).untyped_storage()
    return storage._cdata, storage.nbytes()
