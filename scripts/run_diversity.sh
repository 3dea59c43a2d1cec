#!/usr/bin/env bash
# Reports how varied responses are: distinct-n, entropies, MSTTR, self-BLEU, repetition, lengths. Needs no model.
# Files and further flags go to `raft diversity` (--help lists them).
#     bash scripts/run_diversity.sh output_models/my_run/iterations/0006/samples.jsonl
#     bash scripts/run_diversity.sh before.jsonl after.jsonl --json
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
launch diversity "$@"
