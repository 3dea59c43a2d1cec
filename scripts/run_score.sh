#!/usr/bin/env bash
# Scores texts, prompts with responses, or preference pairs with a reward model, to jsonl.
# Further flags go to `raft score` (--help lists them). On pairs the last line printed is the accuracy, as JSON.
#     bash scripts/run_score.sh --dataset_path data/my_pairs.jsonl --output_path scores.jsonl
#     bash scripts/run_score.sh --reward_model_or_path output_models/reward/final --dataset_path responses.jsonl
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if uses_defaults reward_model_or_path -- "$@"; then ensure_default_model; fi
launch score "$@"
