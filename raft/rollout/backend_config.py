"""The flags that choose what draws responses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from raft.arguments import argument
from raft.config import require

OURS = {
    "model", "tokenizer", "trust_remote_code", "dtype", "seed", "load_format", "generation_config", "hf_overrides",
    "max_model_len", "max_num_seqs", "gpu_memory_utilization", "enable_sleep_mode", "distributed_executor_backend",
    "skip_tokenizer_init", "enable_lora", "logprobs_mode", "max_logprobs",
}  # fmt: skip
"""Arguments of vLLM that other flags decide, or that the hand-over of weights rests on."""

ELSE_VLLM = "; --rollout_backend vllm leaves drawing to vLLM"
"""What helps where the toolkit's own sampler can not draw from a model, as the end of a sentence."""

PARALLEL = {
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size",
    "decode_context_parallel_size", "enable_expert_parallel",
}  # fmt: skip


@dataclass
class BackendConfig:
    """Rollout backend"""

    rollout_backend: Literal["native", "vllm"] = argument(
        "native",
        "What draws responses: native is the toolkit's own sampler, vllm is vLLM (pip install 'raft-toolkit[vllm]'; "
        "docs/performance.md says what of it has been run).",
    )
    vllm_gpu_memory_utilization: float = argument(
        0.3,
        "Share of a GPU's memory that vLLM takes while it draws, weights included; training has all of it otherwise.",
    )
    vllm_options: list[str] = argument(
        [],
        "Further arguments of vLLM's LLM class, such as enforce_eager=true; values are JSON or text.",
        commas=False,
        metavar="NAME=VALUE",
    )

    def __post_init__(self) -> None:
        share = self.vllm_gpu_memory_utilization
        require(0 < share <= 1, f"--vllm_gpu_memory_utilization: found {share}, allowed is above 0 to 1.")
        require(
            not self.vllm_options or self.rollout_backend == "vllm",
            "--vllm_options needs --rollout_backend vllm.",
        )
        self.llm_arguments()

    def llm_arguments(self) -> dict[str, Any]:
        """``vllm_options`` as keyword arguments.

        Raises:
            UserError: naming the first that is none, that another flag decides, or that spreads a model over GPUs.
        """
        found: dict[str, Any] = {}
        for option in self.vllm_options:
            name, separator, text = option.partition("=")
            require(bool(name and separator), f"--vllm_options: found {option!r}, expected NAME=VALUE.")
            require(
                name not in PARALLEL,
                f"--vllm_options: {name} is not supported. Every rank has a vLLM of its own on its own GPU, which "
                "holds the whole model; more ranks draw more responses at once.",
            )
            require(name not in OURS, f"--vllm_options: {name} is decided by other flags.")
            found[name] = _value(text)
        return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
