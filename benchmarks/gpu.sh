#!/usr/bin/env bash
# All that is measured on one GPU, within ten minutes: its limits, sampling, scoring and fine-tuning of three sizes, then
# a whole run of the shape of the first RAFT experiments (20 iterations of 8,192 responses up to 128 tokens, 1,024 kept).
#
#     bash benchmarks/gpu.sh
#     SMALL=1 bash benchmarks/gpu.sh      # does it run? On a CPU too; says nothing about speed
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" TOKENIZERS_PARALLELISM=false
PYTHON="${PYTHON:-python}"
RESULTS="${RESULTS:-benchmarks/results}"
RUN="${RUN:-output_models/gpu_benchmark}"

parts=(--time_limit 150 --results_file "$RESULTS/gpu.json")
shape=(--num_raft_iteration 20 --raft_batch_size 1024 --num_samples_per_prompt 8 --output_max_length 128)
if [ -n "${SMALL:-}" ]; then
    parts+=(--small)
    shape=(--num_raft_iteration 1 --raft_batch_size 4 --num_samples_per_prompt 2 --output_max_length 8 --num_eval_prompts 2)
fi

"$PYTHON" benchmarks/gpu.py "${parts[@]}"
# Without checkpoints: the run is about what the loop needs.
"$PYTHON" -m raft align "${shape[@]}" --per_device_train_batch_size 16 --num_train_epochs 1 --eval_every_n_iterations 10 \
    --save_every_n_iterations 0 --output_dir "$RUN" --overwrite_output_dir
cp "$RUN/summary.json" "$RESULTS/gpu_run_summary.json"
cp "$RUN/metrics.jsonl" "$RESULTS/gpu_run_metrics.jsonl"
cp "$RUN/environment.json" "$RESULTS/gpu_run_environment.json"
