"""A key-value cache with room ahead: each step writes one column instead of copying all that went before."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer's keys and values in buffers of (rows, heads, prompt + room, head size)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, room: int) -> None:
        super().__init__()
        self.length = keys.shape[-2]
        self._buffers = [_widen(tensor, rows, room) for tensor in (keys, values)]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._expose()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new columns and give all columns written so far."""
        end = self.length + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.length = end
        return self._expose()

    def get_seq_length(self) -> int:
        """Columns written so far."""
        return self.length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._expose()

    def _expose(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (buffer[:, :, : self.length] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


def _widen(tensor: torch.Tensor, rows: torch.Tensor, room: int) -> torch.Tensor:
    _, heads, length, size = tensor.shape
    buffer = tensor.new_empty(len(rows), heads, length + room, size)
    buffer[:, :, :length] = tensor[rows]
    return buffer


def with_room(cache: Cache, rows: torch.Tensor, room: int) -> Cache:
    """The cache of a prompt pass, its rows repeated, with room for new columns.

    Args:
        cache: filled by a forward pass over prompts.
        rows: (R,), for every new row the prompt it continues.
        room: columns to come.

    Returns:
        A cache of R rows. Layers that are no plain growing keys and values (sliding windows, linear attention)
        keep their own way of growing.
    """
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        roomy = Cache(layers=[])
        # Layer by layer, so that at no time both copies of the whole cache are in memory.
        layers: list[Any] = cache.layers
        for i, layer in enumerate(layers):
            roomy.layers.append(RoomyLayer(layer.keys, layer.values, rows, room))
            layers[i] = None
        return roomy
    cache.batch_select_indices(rows)
    return cache
