"""How many bytes of tensors are alive while code runs, counted operation by operation.

On the meta device nothing is computed and no memory is taken, so a pass of any model can be counted anywhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RETURNED = 32 << 20
"""Bytes from which glibc gives a freed block back to the system; smaller ones stay with the process (mallopt(3))."""


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations within it make, until they are freed. Those made before do not count.

    Attributes:
        now: bytes alive, without gradients.
        gradients: bytes of what :meth:`is_gradient` named.
        peak: the most that were alive at a time, gradients included. A caching allocator, as on a GPU, needs that.
        resident: the most that a process had at a time whose small freed blocks stay with it, as on a CPU with glibc.
        kept: small blocks, without gradients, that such a process has in the end.
        alone, resident_alone: ``peak`` and ``resident`` without gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.resident = self.kept = self.gradients = self.alone = self.resident_alone = 0
        self._small = self._large = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and look at what it gives."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return (
                args[0].dtype.is_floating_point * 1.0
            )  # no values there: "is any of this padding?" is answered by yes
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)}
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if torch.is_tensor(one) and one.untyped_storage()._cdata not in given:
                self._add(one.untyped_storage())
        return made

    def is_gradient(self, tensor: torch.Tensor) -> None:
        """Count a gradient apart: it outlives its pass, and finds no place between what the pass has freed."""
        size = self._known.pop(tensor.untyped_storage()._cdata, 0)
        self._count(size, -1)
        self.gradients += size
        self._note()

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self._count(storage.nbytes(), 1)
        self._note()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._count(self._known.pop(key, 0), -1)

    def _count(self, size: int, sign: int) -> None:
        self.now += sign * size
        if size >= RETURNED:
            self._large += sign * size
        else:
            self._small += sign * size

    def _note(self) -> None:
        self.kept = max(self.kept, self._small)
        self.alone = max(self.alone, self.now)
        self.resident_alone = max(self.resident_alone, self.kept + self._large)
        self.peak = max(self.peak, self.now + self.gradients)
        self.resident = max(self.resident, self.kept + self._large + self.gradients)
