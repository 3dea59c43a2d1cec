"""What other tools call the flags here: who types one of those names is told ours.

The tables under "Coming from another tool" in README.md say where a meaning differs.
"""

from __future__ import annotations

from collections.abc import Container

OURS = {
    # LMFlow
    "max_train_samples": "num_rows",
    "output_model_path": "output_dir",
    "output_reward_path": "output_dir",
    "use_flash_attention": "attn_implementation",
    # TRL
    "beta": "kl_coefficient",
    "bf16": "dtype",
    "center_rewards_coefficient": "centering",
    "dataset_name": "dataset_path",
    "eval_strategy": "eval_steps",
    "evaluation_strategy": "eval_steps",
    "generation_batch_size": "raft_batch_size",
    "logging_strategy": "logging_steps",
    "mask_truncated_completions": "discard_unfinished",
    "max_completion_length": "output_max_length",
    "num_generations": "num_samples_per_prompt",
    "num_iterations": "num_train_epochs",
    "resume_from_checkpoint": "resume",
    "reward_funcs": "reward",
    "save_strategy": "save_steps",
    "use_peft": "use_lora",
    "warmup_steps": "warmup_ratio",
    # LLaMA-Factory
    "adapter_name_or_path": "lora_path",
    "cutoff_len": "max_length",
    "dataset": "dataset_path",
    "dataset_dir": "dataset_path",
    "eval_dataset": "eval_dataset_path",
    "export_dir": "output_dir",
    "finetuning_type": "use_lora",
    "flash_attn": "attn_implementation",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "max_samples": "num_rows",
    "neat_packing": "packing",
    "reward_model": "reward_model_or_path",
    "val_size": "validation_split_percentage",
    # DeepSpeed-Chat
    "actor_gradient_checkpointing": "gradient_checkpointing",
    "actor_learning_rate": "learning_rate",
    "actor_model_name_or_path": "model_name_or_path",
    "actor_zero_stage": "deepspeed",
    "critic_model_name_or_path": "reward_model_or_path",
    "data_path": "dataset_path",
    "eval_interval": "eval_steps",
    "lora_dim": "lora_r",
    "max_answer_seq_len": "output_max_length",
    "max_prompt_seq_len": "prompt_max_length",
    "max_seq_len": "max_length",
    "num_warmup_steps": "warmup_ratio",
    "offload": "deepspeed",
    "only_optimize_lora": "use_lora",
    "ppo_epochs": "num_train_epochs",
    "zero_stage": "deepspeed",
}


WHERE = "see README.md, Coming from another tool"


def ours(name: str, flags: Container[str]) -> str | None:
    """The flag that does what another tool calls ``name``; None where no tool does, or it is not among ``flags``."""
    found = OURS.get(name)
    return found if found in flags else None
