"""The flags of the commands that answer messages: how models are loaded and how their answers are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from raft.arguments import argument
from raft.config import Template, require
from raft.precision import Dtype


@dataclass
class LoadingConfig:
    """Loading"""

    dtype: Dtype = argument(
        "auto", "Precision of the weights; auto is bf16 where the hardware multiplies it, else fp32."
    )
    template: Template = argument(
        "auto", "How messages become text, as in training; auto is the tokenizer's own template where it has one."
    )
    attn_implementation: str = argument(
        "auto",
        "Attention implementation of transformers: sdpa, eager or flash_attention_2; auto is sdpa where the model has "
        "it, else eager.",
    )
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model. Read that code first.")


@dataclass
class AnswerConfig:
    """Answers (drawn as raft align draws its samples)"""

    temperature: float = argument(0.85, "Sampling temperature; 0 takes the most likely token.")
    top_p: float = argument(1.0, "Sample from the smallest set of tokens that holds this probability; 1 is all tokens.")
    top_k: int = argument(0, "Sample from the so many most likely tokens; 0 is all tokens.")
    max_new_tokens: int = argument(256, "Tokens of an answer at most.", aliases=("output_max_length",))
    stop: list[str] = argument([], "Strings that end an answer when they appear in it, such as ###Human.", commas=False)
    system: str | None = argument(None, "System message in front of every conversation; none is none.")
    seed: int = argument(0, "Seed of the random numbers; the same one gives the same answers.")

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"--temperature: found {self.temperature}, allowed is 0 or more.")
        require(0 < self.top_p <= 1, f"--top_p: found {self.top_p}, allowed is above 0 to 1.")
        require(self.top_k >= 0, f"--top_k: found {self.top_k}, allowed is 0 or more.")
        require(
            self.max_new_tokens >= 1, f"--max_new_tokens: found {self.max_new_tokens}, allowed are integers from 1."
        )
        require(all(self.stop), "--stop: found an empty string.")
        require(0 <= self.seed < 2**31, f"--seed: found {self.seed}, allowed are integers from 0 to 2147483647.")
