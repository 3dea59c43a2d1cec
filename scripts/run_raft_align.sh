#!/usr/bin/env bash
# RAFT: sample from the policy, keep what the reward model ranks best, fine-tune on it, again and again.
# Further flags go to `raft align` (--help lists them); without any, the embedded model is aligned.
#     bash scripts/run_raft_align.sh
#     bash scripts/run_raft_align.sh --num_raft_iteration 20 --output_dir output_models/longer
#     bash scripts/run_raft_align.sh --model_name_or_path my/sft --reward_model_or_path my/reward --nproc 2
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if uses_defaults model_name_or_path reward_model_or_path -- "$@"; then ensure_default_model; fi
launch align "$@"
