#!/usr/bin/env bash
# All measurements of docs/drift.md: the simulation on every core, two real runs, and what the watch says of them.
# Minutes on one GPU, or an hour on a few CPU cores. What it writes is in benchmarks/results/drift_watch/.
#
#     bash benchmarks/drift_watch.sh
#     DIALOGUES=pairs.jsonl PYTHON=.venv/bin/python bash benchmarks/drift_watch.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
PYTHON="${PYTHON:-python}"
DIALOGUES="${DIALOGUES:-../shared/data/hh_rlhf/harmless-base.jsonl.gz}"
RESULTS=benchmarks/results/drift_watch
mkdir -p "$RESULTS"

"$PYTHON" benchmarks/drift_watch.py --dataset_path "$DIALOGUES" --num_workers "$(nproc)" \
    --output_file "$RESULTS/simulation.json" >"$RESULTS/simulation.txt" &
simulation=$!

# The shipped reward model is known to be exploited by stock phrases; with random selection nothing is exploited.
for strategy in local random; do
    run="output_models/drift_watch_$strategy"
    "$PYTHON" -m raft align --seed 0 --raft_batch_size 32 --collection_strategy "$strategy" \
        --eval_every_n_iterations 0 --save_every_n_iterations 0 --output_dir "$run" --overwrite_output_dir
    "$PYTHON" -m raft drift --run_dir "$run" >"$RESULTS/$strategy.txt"
    cp "$run/environment.json" "$RESULTS/$strategy-environment.json"
    cp "$run/metrics.jsonl" "$RESULTS/$strategy-metrics.jsonl"
done
wait "$simulation"
cat "$RESULTS"/*.txt
