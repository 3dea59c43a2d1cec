#!/usr/bin/env bash
# Merges a LoRA adapter (of a policy or of a reward model) into its base: a whole model that needs no peft.
# Further flags go to `raft merge` (--help lists them).
#     bash scripts/run_merge_lora.sh --lora_path output_models/sft_lora/final --output_dir output_models/sft_merged
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if uses_defaults model_name_or_path -- "$@"; then ensure_default_model; fi
launch merge "$@"
