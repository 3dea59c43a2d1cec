"""The flags of ``raft align``. Names follow LMFlow's RaftAligner, where it has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from raft.arguments import DRY_RUN, argument
from raft.config import LoraConfig, ModelConfig, RunConfig, SharedBaseConfig, TrainingConfig, require
from raft.reports.drift import DriftConfig
from raft.rewards.config import RewardConfig
from raft.rewards.rules import DiscardConfig
from raft.rollout.backend_config import BackendConfig
from raft.rollout.sampling import Sampling
from raft.stages.stopping import StoppingConfig


@dataclass
class RaftConfig:
    """RAFT"""

    dataset_path: str = argument(
        "data/prompts/train.jsonl",
        "Prompts: file, directory or hub name, in any format of docs/data.md. Responses in it are ignored.",
    )
    num_raft_iteration: int = argument(6, "Iterations of sampling, ranking and fine-tuning.")
    raft_batch_size: int = argument(16, "b, the responses kept and trained on in an iteration; b*k are sampled.")
    collection_strategy: Literal["top", "local", "random"] = argument(
        "local",
        "local: b prompts, k responses each, the best of every prompt. top: b*k prompts, one response each, the "
        "best b of all. random: samples like local and picks at random, as a control.",
    )
    top_reward_percentage: float | None = argument(
        None,
        "Share of the samples that is kept, 1/k: 0.125 keeps one in eight. Give this or num_samples_per_prompt.",
    )
    num_samples_per_prompt: int | None = argument(
        None, "k, the responses sampled for each one that is kept; none is 8, or what top_reward_percentage says."
    )
    kl_coefficient: float = argument(
        0.0,
        "beta: rank by reward - beta * log(p/p0), the log-ratio of the policy to the initial one on the response. "
        "0 ranks by reward alone and loads no reference.",
    )
    save_every_n_iterations: int = argument(
        1, "Write a checkpoint, for --resume, every so many iterations; 0 is never."
    )
    save_steps: int = argument(
        0, "Write one within an iteration too, every so many optimizer steps; 0 is only when asked to stop."
    )
    save_total_limit: int = argument(1, "Checkpoints to keep; older ones are deleted.")

    def __post_init__(self) -> None:
        for name in ("num_raft_iteration", "raft_batch_size", "save_total_limit"):
            require(
                getattr(self, name) >= 1,
                f"--{name}: found {getattr(self, name)}, allowed are integers from 1.",
            )
        require(self.save_steps >= 0, f"--save_steps: found {self.save_steps}, allowed is 0 or more.")
        share, k = self.top_reward_percentage, self.num_samples_per_prompt
        require(
            share is None or 0 < share <= 1,
            f"--top_reward_percentage: found {share}, allowed is above 0 to 1 (0.125 keeps one in eight).",
        )
        require(k is None or k >= 1, f"--num_samples_per_prompt: found {k}, allowed are integers from 1.")
        require(
            share is None or abs(1 / share - round(1 / share)) < 0.05,
            f"--top_reward_percentage: found {share}, allowed is 1/k for a whole k: 0.5, 0.25, 0.2, 0.125, ...",
        )
        require(
            share is None or k is None or k == round(1 / share),
            f"--top_reward_percentage {share} keeps one in {round(1 / share) if share else 0}, but "
            f"--num_samples_per_prompt is {k}; give one of them.",
        )
        require(self.kl_coefficient >= 0, f"--kl_coefficient: found {self.kl_coefficient}, allowed is 0 or more.")
        require(self.save_every_n_iterations >= 0, "--save_every_n_iterations: allowed is 0 (never) or more.")

    @property
    def k(self) -> int:
        """Responses sampled for each one that is trained on."""
        if self.top_reward_percentage is not None:
            return round(1 / self.top_reward_percentage)
        return self.num_samples_per_prompt or 8

    @property
    def num_prompts(self) -> int:
        """Prompts of an iteration."""
        return self.raft_batch_size * self.k if self.collection_strategy == "top" else self.raft_batch_size

    @property
    def samples_per_prompt(self) -> int:
        """Responses that each of an iteration's prompts gets."""
        return 1 if self.collection_strategy == "top" else self.k


@dataclass
class SamplingConfig:
    """Sampling"""

    temperature: float = argument(0.85, "Sampling temperature (lambda in the paper).")
    top_p: float = argument(1.0, "Sample from the smallest set of tokens that holds this probability; 1 is all tokens.")
    top_k: int = argument(0, "Sample from the so many most likely tokens; 0 is all tokens.")
    output_min_length: int = argument(1, "EOS can not be drawn before so many response tokens.")
    output_max_length: int = argument(64, "Response tokens at most, EOS included.", aliases=("max_new_tokens",))
    prompt_max_length: int = argument(256, "Prompts with more tokens are dropped; how many is printed.")
    stop: list[str] = argument(
        [], "Strings that end a response when they appear in it, such as ###Human.", commas=False
    )
    inference_batch_size_per_device: int | None = argument(
        None,
        "Responses that a rank samples at once. Default: up to 256 on a CPU and 1,024 on a GPU, as memory and the "
        "number of ranks allow.",
    )

    def __post_init__(self) -> None:
        require(
            self.temperature > 0,
            f"--temperature: found {self.temperature}, allowed is above 0: equal samples can not be ranked.",
        )
        require(0 < self.top_p <= 1, f"--top_p: found {self.top_p}, allowed is above 0 to 1.")
        require(self.top_k >= 0, f"--top_k: found {self.top_k}, allowed is 0 or more.")
        for name in ("output_max_length", "prompt_max_length", "inference_batch_size_per_device"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name}: found {value}, allowed are integers from 1.")
        require(
            0 <= self.output_min_length <= self.output_max_length,
            f"--output_min_length: found {self.output_min_length}, allowed is 0 to output_max_length "
            f"({self.output_max_length}).",
        )
        require(all(self.stop), "--stop: found an empty string.")

    @property
    def rows_per_chunk(self) -> int:
        """``inference_batch_size_per_device`` once it is settled."""
        assert self.inference_batch_size_per_device is not None, "settled before anything is sampled"
        return self.inference_batch_size_per_device

    def at(self, temperature: float) -> Sampling:
        """These settings at another temperature."""
        return Sampling(
            temperature=temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.output_max_length,
            min_tokens=self.output_min_length,
            stop=tuple(self.stop),
        )


@dataclass
class HeldOutConfig:
    """Held-out evaluation"""

    eval_dataset_path: str | None = argument(
        "data/prompts/held_out.jsonl",
        "Held-out prompts; none holds out the last validation_split_percentage of dataset_path.",
    )
    validation_split_percentage: float = argument(
        5.0, "Percentage of dataset_path to hold out where eval_dataset_path is none."
    )
    num_eval_prompts: int | None = argument(None, "Use only the first so many held-out prompts; none is all.")
    eval_every_n_iterations: int = argument(
        2, "Evaluate every so many iterations, besides start and end; 0 is at start and end only."
    )
    eval_temperature: float = argument(0.5, "Temperature of held-out responses; 0 is greedy.")

    def __post_init__(self) -> None:
        require(
            self.eval_temperature >= 0,
            f"--eval_temperature: found {self.eval_temperature}, allowed is 0 or more.",
        )
        require(
            self.eval_dataset_path is not None or self.validation_split_percentage > 0,
            "--validation_split_percentage: found 0, allowed is above 0 where eval_dataset_path is none: "
            "the held-out reward needs prompts.",
        )
        require(self.eval_every_n_iterations >= 0, "--eval_every_n_iterations: allowed is 0 or more.")
        require(
            self.num_eval_prompts is None or self.num_eval_prompts >= 1,
            "--num_eval_prompts: allowed are integers from 1.",
        )


@dataclass
class MeasuringConfig:
    """Measuring"""

    kl_num_responses: int = argument(
        8,
        "Responses of an iteration, and of a held-out evaluation, on which the policy's entropy and its KL to the "
        "initial policy are measured. 0 measures neither; without LoRA it also saves rank 0 a copy of the model.",
    )
    perplexity_dataset_path: str | None = argument(
        None,
        "Reference texts whose perplexity is measured with every evaluation: conversations, pairs (the chosen "
        "response) or texts; none takes the responses that the held-out rows have, if they have any.",
    )
    perplexity_num_texts: int = argument(32, "Use the first so many reference texts; 0 measures no perplexity.")

    def __post_init__(self) -> None:
        for name in ("kl_num_responses", "perplexity_num_texts"):
            require(getattr(self, name) >= 0, f"--{name}: found {getattr(self, name)}, allowed are integers from 0.")


@dataclass
class AlignConfig:
    """Align a language model by reward-ranked fine-tuning (RAFT, arXiv 2304.06767)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    raft: RaftConfig = field(default_factory=RaftConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    discard: DiscardConfig = field(default_factory=DiscardConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    measuring: MeasuringConfig = field(default_factory=MeasuringConfig)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(learning_rate=5e-5, num_train_epochs=2, per_device_train_batch_size=8)
    )
    lora: LoraConfig = field(default_factory=LoraConfig)
    sharing: SharedBaseConfig = field(default_factory=SharedBaseConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require(
            self.stopping.best_max_kl is None or self.measuring.kl_num_responses > 0,
            "--best_max_kl needs the KL to be measured: --kl_num_responses above 0.",
        )

    also: ClassVar[tuple[tuple[str, str], ...]] = (DRY_RUN,)
    examples: ClassVar[tuple[str, ...]] = (
        "raft align",
        "raft align --model_name_or_path my-model --reward_model_or_path my-reward-model --dataset_path prompts.jsonl",
        "raft align --raft_batch_size 1024 --top_reward_percentage 0.125 --collection_strategy top --use_lora "
        "--deepspeed scripts/deepspeed/zero2.json",
    )
