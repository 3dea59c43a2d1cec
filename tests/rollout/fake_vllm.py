"""The part of vLLM's interface that the toolkit uses, on a transformers model: strict about what it is given.

Checked against vLLM 0.32 by running the same contract tests on both. What it copies on purpose: global random states
are seeded at the start and used while drawing; weights start as noise; level 2 sleep loses them; stop strings are not
looked for before ``min_tokens``; wrong arguments are TypeError and ValueError.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

VERSION = "0.0.fake"
AWAKE = {"weights", "kv_cache"}


@dataclass
class SamplingParams:
    """As vLLM's, with its defaults and checks."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        ok = self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0
        ok = ok and self.max_tokens >= 1 and 0 <= self.min_tokens <= self.max_tokens
        ok = ok and (self.logprobs is None or self.logprobs <= 20)
        ok = ok and (self.seed is None or -(2**63) <= self.seed < 2**63) and "" not in (self.stop or [])
        if not ok or (self.stop and not self.detokenize):
            raise ValueError(f"not allowed: {self}")


class LLM:
    """As vLLM's, in this process."""

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str,
        trust_remote_code: bool,
        dtype: str,
        seed: int,
        load_format: str,
        generation_config: str,
        max_model_len: int,
        max_num_seqs: int,
        gpu_memory_utilization: float,
        enable_sleep_mode: bool,
        distributed_executor_backend: str,
        enforce_eager: bool = False,
        kv_cache_memory_bytes: int | None = None,
    ) -> None:
        assert (load_format, generation_config) == ("dummy", "vllm")
        assert enable_sleep_mode
        assert distributed_executor_backend == "external_launcher"
        if not 0 < gpu_memory_utilization <= 1 or max_num_seqs < 1:
            raise ValueError("1 validation error for EngineArgs")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.max_model_len = max_model_len
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        config = AutoConfig.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
        for parameter in self.model.parameters():
            parameter.data.uniform_(-1e-3, 1e-3)
        self.awake = set(AWAKE)
        self.calls: list[str] = []
        self.ignored: set[str] = set()  # weights whose names it does not understand
        self._logits: dict[tuple[int, ...], torch.Tensor] = {}

    # ------------------------------------------------------------------------------------------- memory and weights

    def sleep(self, level: int = 1) -> None:
        assert level == 2
        self.calls.append("sleep")
        self.awake.clear()
        self.reset_prefix_cache()
        self.model.to_empty(device="meta")

    def wake_up(self, tags: list[str] | None = None) -> None:
        assert tags
        assert set(tags) <= AWAKE - self.awake, f"already awake: {tags}"
        self.calls += tags
        self.awake |= set(tags)
        if "weights" in tags:
            self.model.to_empty(device="cpu")
            for parameter in self.model.parameters():
                parameter.data.fill_(7.0)  # whatever lay there
            self.model.model.rotary_emb.__init__(self.model.config)  # buffers are kept

    def collective_rpc(self, method: str, *, kwargs: dict[str, Iterable[tuple[str, torch.Tensor]]]) -> list[None]:
        assert method == "reload_weights"
        assert set(kwargs) == {"weights_iterator"}
        assert "weights" in self.awake, "reload_weights while the weights are asleep"
        self.calls.append(method)
        known = dict(self.model.named_parameters(remove_duplicate=False))
        for name, tensor in kwargs["weights_iterator"]:
            if name not in known:
                raise KeyError(name)
            if name not in self.ignored:
                known[name].data.copy_(tensor)
        return [None]

    def reset_prefix_cache(self) -> bool:
        self._logits.clear()
        return True

    # ------------------------------------------------------------------------------------------- drawing

    def generate(self, prompts: list[dict[str, list[int]]], parameters: Any, *, use_tqdm: bool) -> list[Any]:
        assert self.awake == AWAKE, f"awake is {self.awake} alone"
        self.calls.append("generate")
        torch.rand(1), random.random(), np.random.rand()
        each = parameters if isinstance(parameters, list) else [parameters] * len(prompts)
        return [
            SimpleNamespace(outputs=[self._draw(prompt["prompt_token_ids"], one)])
            for prompt, one in zip(prompts, each, strict=True)
        ]

    @torch.no_grad()
    def _next(self, tokens: list[int]) -> torch.Tensor:
        if tuple(tokens) not in self._logits:
            self._logits[tuple(tokens)] = self.model(torch.tensor([tokens])).logits[0, -1].float()
        return self._logits[tuple(tokens)].clone()

    def _draw(self, prompt: list[int], parameters: SamplingParams) -> Any:
        assert type(prompt) is list
        assert prompt
        assert all(type(token) is int for token in prompt)
        if len(prompt) + parameters.max_tokens > self.max_model_len:
            raise ValueError(f"longer than max_model_len {self.max_model_len}")
        generator = torch.Generator()
        generator.seed() if parameters.seed is None else generator.manual_seed(parameters.seed)
        ends = set(parameters.stop_token_ids or []) | ({2} if not parameters.ignore_eos else set())
        tokens: list[int] = []
        logprobs = []
        while len(tokens) < parameters.max_tokens:
            logits = self._next(prompt + tokens)
            logprobs.append(_top(logits, parameters.logprobs))
            if len(tokens) < parameters.min_tokens:
                logits[list(ends)] = -torch.inf
            tokens.append(_pick(logits, parameters, generator))
            if tokens[-1] in ends:
                return _output(tokens, "stop", tokens[-1], logprobs)
            if parameters.stop and len(tokens) > parameters.min_tokens:
                text = self._tokenizer.decode(tokens, skip_special_tokens=parameters.skip_special_tokens)
                before = self._tokenizer.decode(tokens[: parameters.min_tokens], skip_special_tokens=True)
                found = [stop for stop in parameters.stop if text.find(stop, max(0, len(before) - len(stop) + 1)) >= 0]
                if found:
                    return _output(tokens, "stop", found[0], logprobs)
        return _output(tokens, "length", None, logprobs)


def _pick(logits: torch.Tensor, parameters: SamplingParams, generator: torch.Generator) -> int:
    if parameters.temperature == 0:
        return int(logits.argmax())
    p = torch.softmax(logits / parameters.temperature, 0)
    order = p.argsort(descending=True)
    if parameters.top_k:
        p[order[parameters.top_k :]] = 0
    p = p / p.sum()
    p[order[p[order].cumsum(0) - p[order] >= parameters.top_p]] = 0
    return int((p / torch.empty_like(p).exponential_(generator=generator)).argmax())


def _top(logits: torch.Tensor, count: int | None) -> dict[int, Any] | None:
    if count is None:
        return None
    values, tokens = torch.log_softmax(logits, 0).topk(count)
    return {
        token: SimpleNamespace(logprob=value) for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
    }


def _output(tokens: list[int], reason: str, stopped_by: int | str | None, logprobs: list[Any]) -> Any:
    return SimpleNamespace(
        token_ids=tuple(tokens), finish_reason=reason, stop_reason=stopped_by, logprobs=logprobs
    )  # fmt: skip


@contextmanager
def installed() -> Iterator[None]:
    """Within this, ``import vllm`` gives the fake."""
    vllm, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
    vllm.__dict__.update(LLM=LLM, SamplingParams=SamplingParams, __version__=VERSION, platforms=platforms)
    platforms.__dict__["current_platform"] = SimpleNamespace(is_sleep_mode_available=lambda: True, is_cpu=lambda: False)
    others = {name: sys.modules[name] for name in ("vllm", "vllm.platforms") if name in sys.modules}
    sys.modules.update({"vllm": vllm, "vllm.platforms": platforms})
    try:
        yield
    finally:
        for name in ("vllm", "vllm.platforms"):
            del sys.modules[name]
        sys.modules.update(others)
