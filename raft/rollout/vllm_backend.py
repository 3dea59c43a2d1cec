"""vLLM as what draws responses: in this process, on this rank's device, asleep while the policy trains.

At the start of every rollout the policy's weights are handed over in memory (adapters merged), and a probe compares
what both models say next: names that vLLM does not know, weights that stay as they were, a wake-up that lost
something would all give plausible text of another model. vLLM itself starts from no weights at all.

What this rests on: ``reload_weights`` of vLLM's workers takes an iterator since 0.16, and an engine in this process
takes tensors as they are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from raft import distributed
from raft.config import ModelConfig
from raft.data.turns import end_tokens
from raft.errors import UserError
from raft.models.loading import is_adapter
from raft.models.lora import adapter_base, merged_weights
from raft.rollout.backend_config import BackendConfig
from raft.rollout.sampling import Generated, Sampling

FLAG = "--rollout_backend vllm"
PROBE_LENGTH = 16
NUM_COMPARED = 20  # tokens whose log-probabilities are compared: as many as vLLM gives by default
ALLOWED = {"fp32": 0.02, "bf16": 0.5}  # mean difference in nats; a weight that is missing makes it several


class VllmBackend:
    """See :class:`raft.rollout.backend.Backend`. One for each rank, with a vLLM of its own.

    Args:
        config: share of memory, further arguments of vLLM.
        model: of the policy; its files say what the network is, its weights are not read.
        tokenizer: of the policy; see :func:`raft.data.turns.end_tokens`.
        width: tokens of prompt and response at most.
        num_rows: responses drawn together at most.

    Raises:
        UserError: if vLLM is not installed, or does not start with these settings.
    """

    def __init__(self, config: BackendConfig, model: ModelConfig, tokenizer: Any, *, width: int, num_rows: int) -> None:
        vllm = _import_vllm()
        from vllm.platforms import current_platform

        assert model.dtype != "auto", "settled before anything is sampled"
        self._tokenizer, self._width, self._dtype = tokenizer, width, model.dtype
        self._settings = _settings(model.model_name_or_path)
        self._sampling_params = vllm.SamplingParams
        self._can_sleep = bool(current_platform.is_sleep_mode_available())
        more = config.llm_arguments()
        self.identity: list[Any] = ["vllm", vllm.__version__, more]
        name = model.model_name_or_path
        if current_platform.is_cpu():
            # There the head's weights are packed into a copy, which a tied embedding that is reloaded does not reach.
            more = {"hf_overrides": {"tie_word_embeddings": False}, **more}
        distributed.initialize()
        with _random_state_kept():
            self._llm = _start(
                vllm.LLM,
                model=adapter_base(name) if is_adapter(name) else name,
                tokenizer=name,
                trust_remote_code=model.trust_remote_code,
                dtype={"bf16": "bfloat16", "fp32": "float32"}[model.dtype],
                seed=0,
                load_format="dummy",
                generation_config="vllm",  # no temperature or EOS but what the flags and the tokenizer say
                max_model_len=width,
                max_num_seqs=num_rows,
                gpu_memory_utilization=config.vllm_gpu_memory_utilization,
                enable_sleep_mode=self._can_sleep,
                distributed_executor_backend="external_launcher",  # in the process group that is there, each for itself
                **more,
            )
        self._sleep()

    @contextmanager
    def drawing_from(self, policy: AbstractContextManager[Any]) -> Iterator[None]:
        """See :class:`raft.rollout.backend.Backend`. The policy itself is closed again before anything is drawn."""
        try:
            with policy as module:
                self._take_over(module)
            yield
        finally:
            self._sleep()

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        random_keys: Sequence[Sequence[int]],
        sampling: Sampling,
        on_tokens: Callable[[int], None] = lambda num_tokens: None,
    ) -> list[Generated]:
        """See :class:`raft.rollout.backend.Backend`. ``on_tokens`` is told once, at the end."""
        seeds = [int(np.random.default_rng(list(key)).integers(2**63 - 1)) for key in random_keys]
        # What is in the cache decides how a prompt pass is divided, and so its rounding; chunks must not depend on it.
        self._llm.reset_prefix_cache()
        with _random_state_kept():
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompts[i])} for i in rows],
                [self._parameters(sampling, seed) for seed in seeds],
                use_tqdm=False,
            )
        found = [self._response(output.outputs[0], sampling) for output in outputs]
        on_tokens(sum(len(one.tokens) for one in found))
        return found

    def _parameters(self, sampling: Sampling, seed: int) -> Any:
        return self._sampling_params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            seed=seed,
            stop=list(sampling.stop) or None,
            # What ends a response in the toolkit's own sampler too, whatever vLLM reads from the model's files.
            ignore_eos=True,
            stop_token_ids=end_tokens(self._tokenizer, self._settings, sampling.stop),
            detokenize=bool(sampling.stop),
            skip_special_tokens=True,
        )

    def _response(self, output: Any, sampling: Sampling) -> Generated:
        assert output.finish_reason in ("stop", "length"), f"vLLM ended a response by {output.finish_reason}"
        tokens = list(output.token_ids)
        # vLLM does not look for stop strings before min_tokens; the toolkit does.
        for length in range(1, min(sampling.min_tokens, len(tokens)) + 1 if sampling.stop else 1):
            text = self._tokenizer.decode(tokens[:length], skip_special_tokens=True)
            if any(stop in text for stop in sampling.stop):
                return Generated(tokens[:length], "stop")
        if isinstance(output.stop_reason, str):
            return Generated(tokens, "stop")
        ends = end_tokens(self._tokenizer, self._settings, sampling.stop)
        return Generated(tokens, "eos" if tokens[-1] in ends else "length")

    def _take_over(self, module: Any) -> None:
        """Hand a policy's weights over in memory, a tensor at a time, and see that they arrived."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what training freed is torch's until then, and vLLM allocates beside torch
        self._wake("weights")
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": merged_weights(module)})
        self._wake("kv_cache")
        self._llm.reset_prefix_cache()
        distance = self._distance(module)
        if not distance < ALLOWED[self._dtype]:
            raise UserError(
                f"{FLAG}: after its weights were handed over, vLLM's log-probabilities are {distance:.2f} nats from "
                f"the policy's, allowed are {ALLOWED[self._dtype]}: vLLM {self.identity[1]} does not take over this "
                "model as it is. Use --rollout_backend native."
            )

    @torch.no_grad()
    def _distance(self, module: Any) -> float:
        """Mean absolute difference, in nats, of both models' log-probabilities of the likeliest tokens of a probe."""
        embedding = module.get_input_embeddings()
        length, vocabulary = min(PROBE_LENGTH, self._width - 1), embedding.num_embeddings
        probe = [vocabulary * (i + 1) // (length + 1) for i in range(length)]
        logits = module(input_ids=torch.tensor([probe], device=embedding.weight.device)).logits[0, -1]
        expected = torch.log_softmax(logits.float(), -1).tolist()
        parameters = self._sampling_params(
            temperature=0.0, max_tokens=1, logprobs=min(NUM_COMPARED, vocabulary), detokenize=False, ignore_eos=True
        )
        with _random_state_kept():
            (output,) = self._llm.generate([{"prompt_token_ids": probe}], parameters, use_tqdm=False)
        found = output.outputs[0].logprobs[0]
        return float(np.mean([abs(one.logprob - expected[token]) for token, one in found.items()]))

    def _wake(self, tag: str) -> None:
        if self._can_sleep:
            self._llm.wake_up(tags=[tag])

    def _sleep(self) -> None:
        """Free weights and cache; the weights need no copy, they are handed over anew each time."""
        if self._can_sleep:
            self._llm.sleep(level=2)


def _import_vllm() -> Any:
    """vLLM, told to run its engine in this process and to be quiet.

    Raises:
        UserError: if it is not installed or can not be imported.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over as they lie in memory
    for name, value in {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}.items():
        os.environ.setdefault(name, value)
    try:
        import vllm

        vllm.LLM, vllm.SamplingParams  # noqa: B018  # imported at first use
    except ImportError as error:
        raise UserError(
            f"{FLAG}: vLLM can not be imported ({error}). Install it with pip install 'raft-toolkit[vllm]', best in an "
            "environment of its own: a vLLM fits one version of torch."
        ) from error
    return vllm


def _settings(name: str) -> Any:
    """What of a model says which tokens end a response: its generation_config.json, where there is one."""
    from transformers import GenerationConfig

    name = adapter_base(name) if is_adapter(name) else name
    try:
        return SimpleNamespace(generation_config=GenerationConfig.from_pretrained(name))
    except OSError:
        return None


def _start(llm: Callable[..., Any], **arguments: Any) -> Any:
    try:
        return llm(**arguments)
    except (TypeError, ValueError) as error:  # an unknown argument; a network, precision or amount of memory
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{FLAG}: vLLM does not start: {' '.join(line.strip() for line in lines[:3])}") from error


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """vLLM seeds and uses the process's random numbers, which dropout and reward functions draw from."""
    state, numpy_state = random.getstate(), np.random.get_state()
    devices = [distributed.device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
