#!/usr/bin/env bash
# Supervised fine-tuning of all parameters. Further flags go to `raft sft` (--help lists them).
#     bash scripts/run_finetune.sh --dataset_path data/my_chats.jsonl --output_dir output_models/sft
#     bash scripts/run_finetune.sh --dataset_path my.jsonl --output_dir out --deepspeed scripts/deepspeed/zero3.json \
#         --nproc 8
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if uses_defaults model_name_or_path -- "$@"; then ensure_default_model; fi
launch sft "$@"
