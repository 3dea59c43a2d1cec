#!/usr/bin/env bash
# Supervised fine-tuning of a LoRA adapter. Further flags go to `raft sft` (--help lists them).
#     bash scripts/run_finetune_with_lora.sh --dataset_path data/my_chats.jsonl --output_dir output_models/sft_lora
#     bash scripts/run_finetune_with_lora.sh --dataset_path my.jsonl --output_dir out --lora_r 32 --nproc 2
# scripts/run_merge_lora.sh makes a whole model of the adapter.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if uses_defaults model_name_or_path -- "$@"; then ensure_default_model; fi
launch sft --use_lora true "$@"
