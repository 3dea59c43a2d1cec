"""From a batch's last tokens to the logits of its next ones, until every row is done.

Two ways of taking a step, with the same results up to rounding:

* :class:`GrowingDecoder` writes one column of keys and values ahead of those it has, and attends to what is written.
* :class:`GraphDecoder` (CUDA) has buffers of a fixed width, a mask over them, and its whole step as one CUDA graph. A
  step of a small model is a thousand kernels of microseconds; started one by one, the GPU would wait for each.

Shapes: R rows, L columns of the cache, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raft.rollout.cache import StaticLayer, is_plain, with_room

WIDTH_STEP = 64  # widths and numbers of rows are rounded up, so that few graphs serve many chunks
ROWS_STEP = 32


class Decoder(Protocol):
    """Rows in the middle of their responses.

    ``compacts_below`` is the share of rows still running at which leaving the others out pays.
    """

    compacts_below: float

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token (R,) to each row and give the logits (R, V) of the next."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone, in this order."""
        ...


class GrowingDecoder:
    """Takes steps in a cache with room ahead.

    Args:
        model: a causal language model in eval mode.
        cache: filled by a pass over the prompts.
        rows: (R,), for every row the prompt it continues.
        mask: attention mask (P, L) of the prompts, padded on the left.
        room: tokens to come.
    """

    compacts_below = 7 / 8

    def __init__(self, model: Any, cache: Cache, rows: torch.Tensor, mask: torch.Tensor, room: int) -> None:
        self._model, self._cache = model, with_room(cache, rows, room)
        self._mask = mask[rows]
        self._position = self._mask.sum(-1) - 1

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See :class:`Decoder`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._position = self._position + 1
        return self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        """See :class:`Decoder`."""
        self._cache.batch_select_indices(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]


class GraphDecoder:
    """Takes steps by replaying a graph over fixed buffers; where there are fewer rows, the last ones idle.

    Args:
        graphs: of the model that filled the cache.
        cache, rows, mask, room: as for :class:`GrowingDecoder`.
    """

    compacts_below = 1 / 2

    def __init__(self, graphs: Graphs, cache: Cache, rows: torch.Tensor, mask: torch.Tensor, room: int) -> None:
        prompt_width = mask.shape[1]
        self._graphs, self._num_rows, self._size = graphs, len(rows), _rounded(len(rows), ROWS_STEP)
        graphs.allocate(self._size, _rounded(prompt_width + room, WIDTH_STEP))
        layers: list[Any] = cache.layers
        for static, layer in zip(graphs.layers, layers, strict=True):
            static.fill(layer.keys, layer.values, rows)
        graphs.start(mask[rows])

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See :class:`Decoder`. The logits are overwritten by the next step."""
        return self._graphs.step(tokens, self._size)[: self._num_rows]

    def keep(self, rows: torch.Tensor) -> None:
        """See :class:`Decoder`. Sizes are halved, so that chunks of one size need the same few graphs."""
        self._graphs.keep(rows)
        self._num_rows = len(rows)
        while self._size // 2 >= max(len(rows), ROWS_STEP):
            self._size //= 2


class Graphs:
    """The buffers of one model's decoding, and its step over their first rows as a graph for each number of rows.

    Valid while the model's weights stay where they are in memory. On a device without graphs a step runs as it is.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._pool: Any = None  # memory that the graphs share: one runs at a time
        self._captured: dict[int, tuple[Any, torch.Tensor] | None] = {}
        self._num_rows = self._width = 0
        self.layers: list[StaticLayer] = []

    def allocate(self, num_rows: int, width: int) -> None:
        """Make sure that the buffers are ``width`` wide and have so many rows; what they held is lost."""
        if width == self._width and num_rows <= self._num_rows:
            return
        self._captured.clear()
        self._pool = None  # it went with its last graph
        self.layers.clear()  # before the new ones are made: together they might not fit
        self._num_rows = self._width = 0  # should there be no room for what follows
        config = self._model.config.get_text_config()
        heads, size = _heads(config)
        weight = self._model.get_input_embeddings().weight
        options: dict[str, Any] = {"device": weight.device}
        self._column = torch.zeros(1, dtype=torch.long, **options)
        self._tokens = torch.zeros(num_rows, 1, dtype=torch.long, **options)
        self._position = torch.zeros(num_rows, 1, dtype=torch.long, **options)
        # Additive: what can not be seen is -inf. All rows see the column just written: no softmax is over nothing.
        self._mask = torch.empty(num_rows, 1, 1, width, dtype=weight.dtype, **options)
        shape = (num_rows, heads, width, size)
        self.layers += [StaticLayer(shape, weight.dtype, self._column) for _ in range(config.num_hidden_layers)]
        self._num_rows, self._width = num_rows, width

    def start(self, mask: torch.Tensor) -> None:
        """Begin after prompts, padded on the left: ``mask`` (R, L)."""
        num_rows, width = mask.shape
        self._mask.fill_(-torch.inf)
        self._mask[:num_rows, 0, 0, :width].masked_fill_(mask.bool(), 0.0)
        self._column.fill_(width - 1)
        self._position.zero_()
        self._position[:num_rows, 0] = mask.sum(-1) - 1

    def keep(self, rows: torch.Tensor) -> None:
        """Move these rows to the front."""
        for layer in self.layers:
            layer.fill(layer.keys, layer.values, rows)
        for tensor in (self._mask, self._position):
            tensor[: len(rows)] = tensor[rows]

    def step(self, tokens: torch.Tensor, size: int) -> torch.Tensor:
        """Append ``tokens`` (R,) to the first rows and run the first ``size`` rows; gives logits (size, V)."""
        self._tokens[: len(tokens), 0] = tokens
        self._column += 1
        self._position += 1
        self._mask.index_fill_(3, self._column, 0.0)
        if not tokens.is_cuda:
            return self._forward(size)
        if size not in self._captured:
            self._captured[size] = self._capture(size)
        captured = self._captured[size]
        if captured is None:
            return self._forward(size)
        graph, logits = captured
        graph.replay()
        return logits

    def _capture(self, size: int) -> tuple[Any, torch.Tensor] | None:
        """The step as a graph and where it leaves its logits; None for a model that does what can not be recorded."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._forward(size)  # once as it is, for what libraries set up at first use
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                logits = self._forward(size)
        except RuntimeError as error:
            print(f"sampling goes on without CUDA graphs: {str(error).splitlines()[0]}", file=sys.stderr)
            return None
        return graph, logits

    def _forward(self, size: int) -> torch.Tensor:
        with grouped_attention(self._model):
            return self._model(
                input_ids=self._tokens[:size],
                attention_mask=self._mask[:size],
                position_ids=self._position[:size],
                past_key_values=Cache(layers=[layer.first(size) for layer in self.layers]),
                use_cache=True,
            ).logits[:, -1]


def can_graph(model: Any, cache: Cache) -> bool:
    """Whether :class:`GraphDecoder` can take this model's steps: on CUDA, with sdpa over plain keys and values.

    Keys and values have to be of the shape that the configuration says (those of multi-query and latent attention may
    be others), and their bias by distance must not be made from a mask (ALiBi).
    """
    device = model.get_input_embeddings().weight.device
    return (
        device.type == "cuda"
        and model.config._attn_implementation == "sdpa"
        and is_plain(cache)
        and has_usual_heads(model.config.get_text_config(), cache)
    )


def has_usual_heads(config: Any, cache: Cache) -> bool:
    """Whether every layer's keys and values have the heads and sizes that a configuration says, without ALiBi."""
    layers: Any = cache.layers
    shapes = {tuple(part.shape[1::2]) for layer in layers for part in (layer.keys, layer.values)}
    return shapes == {_heads(config)} and not getattr(config, "alibi", False)


def _heads(config: Any) -> tuple[int, int]:
    """Number of key-value heads and their size."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step


# ---------------------------------------------------------------- attention of one query a row

GROUPED = "raft_grouped_sdpa"


def grouped_query_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention of one new token a row, without copying the keys that several heads share.

    The query heads of a group become the queries of their key head. transformers before 5.20 copies keys and values
    once per query head instead, which for three heads a group is seven times the memory traffic.

    Args:
        query: (R, heads, 1, size).
        key, value: (R, key heads, L, size).
        attention_mask: (R, 1, 1, L), additive.

    Returns:
        (R, 1, heads, size).
    """
    rows, heads, _, size = query.shape
    groups = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    output = torch.nn.functional.scaled_dot_product_attention(groups, key, value, attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, output.shape[-1]), None


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Let a model compute its attention by :func:`grouped_query_attention`, and as before afterwards."""
    ALL_ATTENTION_FUNCTIONS.register(GROUPED, grouped_query_attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = before
