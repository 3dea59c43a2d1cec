"""What is compared: one iteration of RAFT by this toolkit, and one step of TRL's GRPOTrainer. See also plain_loop.

Each ``measure_*`` function is run in a process of its own and gives a :class:`Measurement`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import (
    WEIGHTS,
    Measurement,
    Precision,
    Stopwatch,
    Work,
    classifier_of,
    load_tokenizer,
    prompt_batches,
    silence,
)

MICRO_BATCH = 8  # sequences that go through the model at once in training, this toolkit and the plain loop
TRL_MICRO_BATCH = 16  # the same for TRL, which trains on all k responses

# ---------------------------------------------------------------- this toolkit


def measure_raft(work: Work) -> Measurement:
    """Run ``raft align`` itself and take the time from drawing an iteration's prompts to its last written curve."""
    from raft.stages.align import Alignment
    from raft.stages.common import take

    with TemporaryDirectory() as folder, silence():
        alignment: Any = Alignment(align_config(work, folder))
        watch, spent = Stopwatch(), alignment.progress.seconds
        before: dict[str, float] = {}

        def begin() -> None:
            before.update(spent)
            watch.start()

        def end() -> None:
            for phase in spent:
                watch.add(phase, spent[phase] - before.get(phase, 0.0))
            watch.lap()

        alignment.take_prompts = _around(alignment.take_prompts, before=begin)
        alignment.record = _around(alignment.record, after=end)
        take(alignment.directory, alignment.config)
        alignment.run()
        lengths = [row["response/length_mean"] for row in _log(folder) if "response/length_mean" in row]
    phases = {name for lap in watch.laps for name, seconds in lap.items() if seconds}
    watch.laps = [{name: seconds for name, seconds in lap.items() if name in phases} for lap in watch.laps]
    return watch.measurement(work, lengths, {name: seconds for name, seconds in spent.items() if name not in phases})


def align_config(work: Work, folder: str) -> Any:
    """The flags of ``raft align`` for this work: one optimizer step an iteration, held-out only at start and end."""
    from raft.arguments import from_dict
    from raft.stages.align_config import AlignConfig

    num_iterations = work.num_iterations
    micro_batch = gcd(work.num_prompts, MICRO_BATCH)
    shared = ["model_name_or_path", "reward_model_or_path", "reward_base_model", "dataset_path", "learning_rate"]
    shared += ["num_samples_per_prompt", "output_max_length", "prompt_max_length", "num_eval_prompts", "seed"]
    own = {
        "output_dir": f"{folder}/run",
        "num_raft_iteration": num_iterations,
        "raft_batch_size": work.num_prompts,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": work.num_prompts // micro_batch,
        "num_train_epochs": 1,  # one pass, as the peers make
        "eval_every_n_iterations": 0,
        "save_every_n_iterations": num_iterations,
    }
    return from_dict(AlignConfig, {name: getattr(work, name) for name in shared} | own)


def _around(
    function: Callable[..., Any],
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        before()
        result = function(*arguments)
        after()
        return result

    return wrapped


def _log(folder: str) -> list[dict[str, Any]]:
    from raft.run_directory import read_jsonl

    return read_jsonl(Path(folder) / "run" / "metrics.jsonl")


# ---------------------------------------------------------------- TRL


def measure_trl(work: Work, precision: Precision) -> Measurement:
    """Steps of TRL's GRPOTrainer, N responses each, the reward model as a model with its adapter merged."""
    from datasets import Dataset
    from trl import GRPOTrainer

    with TemporaryDirectory() as folder, silence():
        tokenizer = load_tokenizer(work.model_name_or_path)
        classifier, classifier_tokenizer = classifier_of(work, precision, merged=True)
        batches, watch = prompt_batches(work, tokenizer), Stopwatch()
        trainer: Any = GRPOTrainer(
            model=work.model_name_or_path,
            reward_funcs=classifier,
            reward_processing_classes=classifier_tokenizer,
            processing_class=tokenizer,
            args=grpo_config(work, precision, folder),
            train_dataset=Dataset.from_list([{"prompt": messages} for batch in batches for messages in batch]),
            callbacks=[_lap_callback(watch)],
        )
        _time_phases(trainer, watch)
        trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    for lap in watch.laps:
        lap["training"] = lap["total"] - lap["sampling"] - lap["scoring"]
    return watch.measurement(work, lengths)


def grpo_config(work: Work, precision: Precision, folder: str) -> Any:
    """One optimizer step on N responses, without what costs time: reference model, recomputation, saving, logs."""
    from trl import GRPOConfig

    num_responses = work.num_prompts * work.num_samples_per_prompt
    micro_batch = gcd(num_responses, TRL_MICRO_BATCH)
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=precision != "fp32",
        model_init_kwargs={"dtype": WEIGHTS[precision]},
        cache_implementation=work.cache_implementation,
        num_generations=work.num_samples_per_prompt,
        max_completion_length=work.output_max_length,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=num_responses // micro_batch,
        gradient_checkpointing=False,
        learning_rate=work.learning_rate,
        max_steps=work.num_iterations,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        seed=work.seed,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )


def _lap_callback(watch: Stopwatch) -> Any:
    from transformers import TrainerCallback

    class LapCallback(TrainerCallback):
        """From the end of one step to the end of the next: nothing that a step needs is left out."""

        def on_train_begin(self, *arguments: Any, **options: Any) -> None:
            watch.start()

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            watch.lap()

    return LapCallback()


def _time_phases(trainer: Any, watch: Stopwatch) -> None:
    """Put the stopwatch around the two phases that a GRPO step begins with."""
    for phase, name in (("sampling", "_generate"), ("scoring", "_calculate_rewards")):
        setattr(trainer, name, watch.phase(phase)(getattr(trainer, name)))
