#!/usr/bin/env bash
# A reward model from pairs of a chosen and a rejected response (Bradley-Terry; LoRA by default).
# Further flags go to `raft reward` (--help lists them).
#     bash scripts/run_reward_modeling.sh --dataset_path data/my_pairs.jsonl --output_dir output_models/reward
#     bash scripts/run_reward_modeling.sh --dataset_path pairs.jsonl --output_dir out --validation_split_percentage 10
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if uses_defaults model_name_or_path -- "$@"; then ensure_default_model; fi
launch reward "$@"
