"""Key-value caches with room ahead: each step writes one column instead of copying all that went before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import Cache, DynamicLayer

# What of the installed transformers keeps keys and values, or (DummyLayer) reads those of another layer.
KEYS_AND_VALUES = tuple(
    getattr(cache_utils, name)
    for name in ("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer")
    if hasattr(cache_utils, name)
)


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


class PrefixLayer(DynamicLayer):
    """One layer's keys and values of P prefixes, read behind by R rows in one pass; nothing is added to them.

    Rows get their prefix's columns when the pass is at this layer, so that no more than one layer's are in memory.

    Args:
        keys, values: (P, heads, L, head size).
        owners: (R,), for every row its prefix.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, owners: torch.Tensor) -> None:
        super().__init__()
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.owners = owners
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give each row its prefix's columns and the new ones after them."""
        keys = torch.cat([self.keys[self.owners], key_states], dim=2)
        return keys, torch.cat([self.values[self.owners], value_states], dim=2)

    def get_seq_length(self) -> int:
        """Columns of the prefixes, padding included."""
        return self.keys.shape[2]


class StaticLayer(DynamicLayer):
    """One layer's keys and values in buffers that never move, written at a column whose number is on the device.

    Args:
        shape: (rows, heads, width, head size).
        column: (1,), where the next keys and values go; shared by the layers and moved by their owner.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, column: torch.Tensor) -> None:
        super().__init__()
        # Zeros: what the mask hides is multiplied by zero, which must not be NaN.
        keys, values = (torch.zeros(shape, dtype=dtype, device=column.device) for _ in range(2))
        self._use(keys, values, column)

    def _use(self, keys: torch.Tensor, values: torch.Tensor, column: torch.Tensor) -> None:
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self._column = column
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one column and give the whole buffers, of which a mask hides what is not written."""
        self.keys.index_copy_(2, self._column, key_states)
        self.values.index_copy_(2, self._column, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Not known on the host: whoever uses this layer supplies positions and masks."""
        return 0

    def fill(self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> None:
        """Copy some rows of other (or these) keys and values to the front."""
        for buffer, tensor in ((self.keys, keys), (self.values, values)):
            buffer[: len(rows), :, : tensor.shape[2]] = tensor[rows]

    def first(self, num_rows: int) -> StaticLayer:
        """The first rows of this layer, in the same memory."""
        part = StaticLayer.__new__(StaticLayer)
        DynamicLayer.__init__(part)
        part._use(self.keys[:num_rows], self.values[:num_rows], self._column)
        return part


def _widen(tensor: torch.Tensor, rows: torch.Tensor, room: int) -> torch.Tensor:
    _, heads, length, size = tensor.shape
    buffer = tensor.new_empty(len(rows), heads, length + room, size)
    buffer[:, :, :length] = tensor[rows]
    return buffer


def is_plain(cache: Cache) -> bool:
    """Whether every layer is growing keys and values, without sliding windows or linear attention."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def has_recurrent_layers(config: Any) -> bool:
    """Whether a transformers configuration names layers whose cache is not keys and values alone."""
    kinds: dict[str, type] = getattr(cache_utils, "DYNAMIC_LAYER_TYPE_MAPPING", {})
    named = getattr(config.get_text_config(), "layer_types", None) or ()
    return any(kinds[name] not in KEYS_AND_VALUES for name in named if name in kinds)


def keeps_rows_apart(cache: Any) -> bool:
    """Whether what a forward pass left is keys and values in every layer, whose rows can be repeated and left out."""
    layers = getattr(cache, "layers", None) if isinstance(cache, Cache) else None
    return bool(layers) and all(type(layer) in KEYS_AND_VALUES for layer in layers or ())


def side_by_side(caches: Sequence[Cache], groups: Sequence[Sequence[int]]) -> Cache:
    """Caches of groups of prompts, each padded on the left to its own width, as one cache of all prompts.

    Args:
        caches: of plain layers; they are taken apart.
        groups: for every cache the numbers of its prompts.
    """
    joined = Cache(layers=[])
    parts: list[list[Any]] = [cache.layers for cache in caches]
    num_prompts = sum(map(len, groups))
    for i in range(len(parts[0])):
        together = []
        for name in ("keys", "values"):
            tensors = [getattr(layers[i], name) for layers in parts]
            _, heads, _, size = tensors[0].shape
            width = max(tensor.shape[2] for tensor in tensors)
            # Zeros: what the mask hides is multiplied by zero, which must not be NaN.
            whole = tensors[0].new_zeros(num_prompts, heads, width, size)
            for group, tensor in zip(groups, tensors, strict=True):
                whole[list(group), :, width - tensor.shape[2] :] = tensor
            together.append(whole)
        layer = DynamicLayer()
        layer.keys, layer.values = together
        layer.dtype, layer.device, layer.is_initialized = together[0].dtype, together[0].device, True
        joined.layers.append(layer)
        for layers in parts:
            layers[i] = None  # at no time are both copies of the whole cache in memory
    return joined


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
    if is_plain(cache):
        roomy = Cache(layers=[])
        # Layer by layer, so that at no time both copies of the whole cache are in memory.
        layers: list[Any] = cache.layers
        for i, layer in enumerate(layers):
            roomy.layers.append(RoomyLayer(layer.keys, layer.values, rows, room))
            layers[i] = None
        return roomy
    cache.batch_select_indices(rows)
    return cache


def behind(cache: Cache, owners: torch.Tensor) -> Cache:
    """A cache of P prefixes to read R rows behind in one pass, each behind the prefix of its number in ``owners``.

    Raises:
        ValueError: for layers that are no plain growing keys and values.
    """
    if not is_plain(cache):
        raise ValueError("sliding windows and recurrent states can not be read behind")
    layers: list[Any] = cache.layers
    return Cache(layers=[PrefixLayer(layer.keys, layer.values, owners) for layer in layers])


def cache_bytes(config: Any, width: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one row ``width`` tokens long.

    Args:
        config: of a transformers model; layers without growing keys and values count as if they had them.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * size * width * dtype.itemsize
