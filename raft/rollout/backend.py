"""What a rollout needs of whatever draws its responses, and the toolkit's own sampler as one such backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from raft.config import ModelConfig
from raft.memory import in_halves
from raft.rollout.backend_config import BackendConfig
from raft.rollout.decoding import Graphs
from raft.rollout.sampler import generate
from raft.rollout.sampling import Generated, Sampling


class Backend(Protocol):
    """Draws responses from the policy as it is at the time.

    Attributes:
        identity: JSON values that tell its samples from those of other backends with the same random numbers.
    """

    identity: list[Any]

    def drawing_from(self, policy: AbstractContextManager[Any]) -> AbstractContextManager[None]:
        """Within this, responses are drawn from ``policy``; afterwards its memory is free for training again.

        Args:
            policy: not entered yet; gives a causal language model in eval mode with whole weights
                (``Engine.generating``), the same on every rank.
        """
        ...

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        random_keys: Sequence[Sequence[int]],
        sampling: Sampling,
        on_tokens: Callable[[int], None] = lambda num_tokens: None,
    ) -> list[Generated]:
        """Sample responses on this rank's device.

        Args:
            prompts: token ids.
            rows: for every response wanted, the index of its prompt.
            random_keys: for every response wanted, what decides its random numbers, whatever it is drawn together
                with.
            sampling: temperature, limits and stop strings.
            on_tokens: told now and then how many tokens were drawn since it was last told.

        Returns:
            One response for each of ``rows``, in that order.
        """
        ...


class NativeBackend:
    """The toolkit's own sampler (:mod:`raft.rollout.sampler`) on the policy itself.

    Args:
        tokenizer: its EOS ends a response; its decoder is what stop strings are looked for in.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.identity: list[Any] = []  # of before there was a choice: journals of that time stay good
        self._tokenizer = tokenizer
        self._model: Any = None
        self._graphs: Graphs | None = None

    @contextmanager
    def drawing_from(self, policy: AbstractContextManager[Any]) -> Iterator[None]:
        """See :class:`Backend`."""
        with policy as model:
            self._model, self._graphs = model, Graphs(model)
            try:
                yield
            finally:
                self._model = self._graphs = None

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        random_keys: Sequence[Sequence[int]],
        sampling: Sampling,
        on_tokens: Callable[[int], None] = lambda num_tokens: None,
    ) -> list[Generated]:
        """See :class:`Backend`. Where memory runs out, in halves."""
        uniforms = np.stack(
            [np.random.default_rng(list(key)).random(sampling.max_tokens, dtype=np.float32) for key in random_keys]
        )

        def draw(part: range) -> list[Generated]:
            asked = [rows[i] for i in part]
            unique = list(dict.fromkeys(asked))
            place = {prompt: i for i, prompt in enumerate(unique)}
            numbers = torch.from_numpy(uniforms[part.start : part.stop])
            texts, places = [prompts[i] for i in unique], [place[i] for i in asked]
            return generate(
                self._model, texts, places, numbers, sampling, self._tokenizer, on_tokens, self._graphs
            )  # fmt: skip

        return in_halves(draw, len(rows), what="responses")


def load_backend(config: BackendConfig, model: ModelConfig, tokenizer: Any, *, width: int, num_rows: int) -> Backend:
    """The backend that the flags name. On all ranks together, once the models that train are in memory.

    Args:
        model: of the policy.
        width: tokens of prompt and response at most.
        num_rows: responses drawn together at most.

    Raises:
        UserError: if vLLM is asked for and is not there, or does not start.
    """
    if config.rollout_backend == "native":
        return NativeBackend(tokenizer)
    from raft.rollout.vllm_backend import VllmBackend

    return VllmBackend(config, model, tokenizer, width=width, num_rows=num_rows)
