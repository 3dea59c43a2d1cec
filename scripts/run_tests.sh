#!/usr/bin/env bash
# The whole check: ruff, mypy and every test. Arguments go to pytest (-n 0 for one process).
#     bash scripts/run_tests.sh
#     bash scripts/run_tests.sh -k engine
#     bash scripts/run_tests.sh -m "not slow and not benchmarks" -x
#     bash scripts/run_tests.sh -m benchmarks       # do the benchmarks run? Left out otherwise
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

FAILED=""

# stage NAME COMMAND...: runs it and says in one line how it went; the next stage runs in any case.
stage() {
    local name="$1" started=$SECONDS outcome=passed
    shift
    if dry_run; then
        print_command "$@"
        return
    fi
    "$@" || {
        outcome="FAILED (exit code $?)"
        FAILED="$FAILED $name"
    }
    say "$name: $outcome in $((SECONDS - started)) s"
}

ensure_environment dev
ensure_default_model # some tests are about the real one
stage ruff "$PYTHON" -m ruff check .
# mypy has work for one core only: it runs beside the tests, and says what it found behind them.
if dry_run; then
    stage mypy "$PYTHON" -m mypy raft
else
    TYPES="$(mktemp)"
    trap 'rm -f "$TYPES"' EXIT
    (FAILED="" && stage mypy "$PYTHON" -m mypy raft && [ -z "$FAILED" ]) >"$TYPES" 2>&1 &
fi
# A worker for each core (one file stays in one of them, for the models and runs that its tests share), four at most.
WORKERS=$(getconf _NPROCESSORS_ONLN)
[ "$WORKERS" -le 4 ] || WORKERS=4
stage pytest "$PYTHON" -m pytest --numprocesses "$WORKERS" --dist loadfile "$@"
if [ -n "${TYPES:-}" ]; then
    wait $! || FAILED="$FAILED mypy"
    cat "$TYPES" >&2
fi
[ -z "$FAILED" ] || die "failed:$FAILED"
