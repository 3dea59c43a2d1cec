"""What the peers share: the work, how its time is taken, prompts and models."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from raft.arguments import argument
from raft.config import require

Precision = Literal["bf16", "autocast", "fp32"]
"""How the others compute: with bf16 weights, with fp32 weights under torch.autocast to bf16, or in fp32."""
WEIGHTS = {"bf16": "bfloat16", "autocast": "float32", "fp32": "float32"}


@dataclass
class Work:
    """Work: the same for every peer"""

    model_name_or_path: str = argument("output_models/SmolLM2-135M-Instruct", "Model to train.")
    reward_model_or_path: str = argument("data/reward_model", "Sequence classifier or LoRA adapter that scores.")
    reward_base_model: str | None = argument(None, "Model below a LoRA reward adapter. Default: the one it names.")
    dataset_path: str = argument("data/prompts/train.jsonl", "Prompts.")
    num_prompts: int = argument(16, "b: prompts of an iteration.")
    num_samples_per_prompt: int = argument(4, "k: responses to each prompt.")
    output_max_length: int = argument(64, "Response tokens at most; EOS may end a response before.")
    prompt_max_length: int = argument(256, "Prompts with more tokens are left out.")
    learning_rate: float = argument(1e-5, "Learning rate.")
    iterations: int = argument(3, "Timed iterations.")
    warm_up: bool = argument(True, "One iteration before them that is not counted.")
    num_eval_prompts: int = argument(96, "Held-out prompts of this toolkit's evaluation, which is reported apart.")
    seed: int = argument(0, "Seed.")
    cache_implementation: str | None = argument(
        None, "Cache of transformers' generate in plain and trl, such as static. Default: its own choice."
    )

    def __post_init__(self) -> None:
        for name in ("num_prompts", "output_max_length", "iterations", "num_eval_prompts"):
            require(getattr(self, name) >= 1, f"--{name}: found {getattr(self, name)}, allowed are integers from 1.")
        k = self.num_samples_per_prompt
        require(k >= 2, f"--num_samples_per_prompt: found {k}, allowed are integers from 2 (GRPO compares responses).")

    @property
    def num_iterations(self) -> int:
        """Iterations in all, a warm-up included."""
        return self.iterations + int(self.warm_up)

    def timed(self, values: Sequence[float]) -> list[float]:
        """Of values by iteration, those that count."""
        return list(values[int(self.warm_up) :])


@dataclass
class Measurement:
    """What one peer took.

    Attributes:
        iterations: for every timed iteration the wall-clock seconds of its phases and their ``total``, which also
            has what belongs to no phase.
        warm_up: the same for the iteration before them; empty where every iteration is timed.
        response_tokens: mean length of a response in every timed iteration, EOS included.
        peak_rss_mib: largest resident memory of the process up to the last iteration.
        num_threads: torch's threads.
        apart: seconds of what is no part of an iteration here.
    """

    iterations: list[dict[str, float]]
    warm_up: dict[str, float]
    response_tokens: list[float]
    peak_rss_mib: float
    num_threads: int
    apart: dict[str, float] = field(default_factory=dict)


class Stopwatch:
    """Takes the time of iterations and of the phases in them."""

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self.peak_rss_mib = 0.0
        self.start()

    def start(self) -> None:
        """An iteration begins."""
        self._phases: dict[str, float] = {}
        self._begin = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time spent inside towards a phase."""
        begin = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Count time towards a phase."""
        self._phases[name] = self._phases.get(name, 0.0) + seconds

    def lap(self) -> None:
        """An iteration ends, and the next one begins."""
        self.laps.append(self._phases | {"total": time.perf_counter() - self._begin})
        self.peak_rss_mib = peak_rss_mib()
        self.start()

    def measurement(
        self, work: Work, response_tokens: Sequence[float], apart: dict[str, float] | None = None
    ) -> Measurement:
        """All of it, a warm-up apart; ``response_tokens`` has one number an iteration, warm-up included."""
        import torch

        return Measurement(
            iterations=self.laps[int(work.warm_up) :],
            warm_up=self.laps[0] if work.warm_up else {},
            response_tokens=work.timed(response_tokens),
            peak_rss_mib=self.peak_rss_mib,
            num_threads=torch.get_num_threads(),
            apart=apart or {},
        )


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def silence() -> Iterator[None]:
    """Keep what a peer prints, bars and advice included, off the screen; what it raises still arrives."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def prompt_batches(work: Work, tokenizer: Any) -> list[list[list[dict[str, str]]]]:
    """The prompts that this toolkit draws, as messages: b for each iteration."""
    from raft.data.loading import load_rows
    from raft.data.templates import ConversationTemplate
    from raft.rollout.prompts import draw_prompts, encode_prompts

    rows = load_rows(work.dataset_path, kinds={"prompt"}).rows
    template = ConversationTemplate(tokenizer)
    prompts, _ = encode_prompts(rows, template, max_length=work.prompt_max_length, flag="--dataset_path")
    b, num_iterations = work.num_prompts, work.num_iterations
    drawn = draw_prompts(len(prompts), seed=work.seed, cursor=0, count=b * num_iterations)
    messages = [[dict(message) for message in prompts[i].messages] for i in drawn]
    return [messages[b * i : b * (i + 1)] for i in range(num_iterations)]


def load_tokenizer(path: str) -> Any:
    """A tokenizer that can pad."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(work: Work, *, merged: bool, dtype: str = "bfloat16") -> tuple[Any, Any]:
    """The reward model and its tokenizer; a LoRA adapter is left beside its base, or merged into it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from raft.models.lora import adapter_base

    path = work.reward_model_or_path
    is_adapter = (Path(path) / "adapter_config.json").is_file()
    base = adapter_base(path, base=work.reward_base_model) if is_adapter else path
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    if is_adapter:
        from peft import PeftModel

        classifier = PeftModel.from_pretrained(classifier, path)
        classifier = classifier.merge_and_unload() if merged else classifier
    tokenizer = load_tokenizer(path if (Path(path) / "tokenizer_config.json").is_file() else base)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    return classifier.to(getattr(torch, dtype)).eval(), tokenizer


def classifier_of(work: Work, precision: Precision, *, merged: bool = False) -> tuple[Any, Any]:
    """The reward model of a peer that computes so, and its tokenizer."""
    return load_classifier(work, merged=merged, dtype="float32" if precision == "fp32" else "bfloat16")
