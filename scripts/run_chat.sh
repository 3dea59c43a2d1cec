#!/usr/bin/env bash
# Talks to a model, a LoRA adapter or the last policy of a run; to several side by side with --compare.
# Further flags go to `raft chat` (--help lists them); without any, it is the embedded model. A pipe works too.
#     bash scripts/run_chat.sh
#     bash scripts/run_chat.sh output_models/SmolLM2-135M-Instruct --compare output_models/first_run
#     echo "Hello!" | bash scripts/run_chat.sh output_models/first_run --temperature 0.5
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
case "${1:---}" in
    --*) if uses_defaults model_name_or_path -- "$@"; then ensure_default_model; fi ;;
esac
launch chat "$@"
