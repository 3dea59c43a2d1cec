# shellcheck shell=bash
# What every script here shares; sourced, never run. A script is three calls:
#
#     ensure_environment             # an interpreter with everything in it, in $PYTHON
#     ensure_default_model           # output_models/SmolLM2-135M-Instruct
#     launch align "$@"              # raft align, in one process or several
#
# Environment variables that change what happens:
#     RAFT_PYTHON      the interpreter to use: as it is where it has all requirements, else the base of .venv
#     RAFT_VENV        where the managed environment lives (default: .venv in the repository)
#     NUM_PROCESSES    number of processes on this machine; the flag --nproc N says the same and wins
#     RAFT_DRY_RUN=1   print the command that would run, and install, prepare and run nothing
# On several machines start torchrun yourself on each of them:
#     torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \
#         --no-python bash scripts/run_finetune.sh ...
# Commands run from the repository root, so that the defaults (data/..., output_models/...) are found. Called from
# elsewhere, paths in flags are still yours: one that exists where you are, and every --output* path, counts from
# your directory.

set -euo pipefail

RAFT_CALLER_DIR="$(pwd -P)"
RAFT_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
RAFT_VENV="${RAFT_VENV:-$RAFT_ROOT/.venv}"
case "$RAFT_VENV" in /*) ;; *) RAFT_VENV="$RAFT_CALLER_DIR/$RAFT_VENV" ;; esac
DEFAULT_MODEL="output_models/SmolLM2-135M-Instruct"
CPU_TORCH_INDEX="https://download.pytorch.org/whl/cpu"
PYTHON="${RAFT_PYTHON:-python3}"
cd "$RAFT_ROOT"

# Forked data workers make the tokenizers warn on every fork otherwise.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

say() { printf '[raft] %s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

dry_run() { [ -n "${RAFT_DRY_RUN:-}" ] && [ "$RAFT_DRY_RUN" != 0 ]; }

print_command() {
    printf '%q ' "$@"
    printf '\n'
}

has_accelerator() {
    local tool
    [ -e /dev/kfd ] && return 0
    for tool in nvidia-smi xpu-smi hl-smi npu-smi; do
        if command -v "$tool" >/dev/null 2>&1; then return 0; fi
    done
    return 1
}

# Without an accelerator DeepSpeed looks for one, warns and then takes the CPU; told so, it starts at once.
if [ "$(uname -s)" = Linux ] && ! has_accelerator; then
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
fi

# locked FILE COMMAND...: one process at a time; the others wait. Without flock (macOS) it just runs.
locked() {
    local lock="$1"
    shift
    if ! command -v flock >/dev/null 2>&1; then
        "$@"
        return
    fi
    (
        if ! flock -n 9; then
            say "waiting for another script that is doing the same"
            flock 9
        fi
        "$@" 9>&-
    ) 9>"$lock"
}

# ---------------------------------------------------------------- the Python environment

# ensure_environment [EXTRA...]: leaves in $PYTHON an interpreter with the requirements of setup.py (and EXTRA's).
ensure_environment() {
    if dry_run; then
        PYTHON=python
        return
    fi
    local wanted
    use_active_environment "$@" && return
    PYTHON="$RAFT_VENV/bin/python"
    wanted="$(cat setup.py constraints.txt | cksum) $RAFT_VENV"
    if ! environment_is_ready "$wanted" "$@"; then
        mkdir -p "$(dirname "$RAFT_VENV")"
        locked "$RAFT_VENV.lock" set_up_environment "$wanted" "$@"
    fi
}

# An environment of the user's own is used as it is, and nothing is ever installed into it.
use_active_environment() {
    local prefix="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" candidate lacking install=""
    if [ -n "${RAFT_PYTHON:-}" ]; then
        command -v "$RAFT_PYTHON" >/dev/null || die "RAFT_PYTHON=$RAFT_PYTHON: there is no such program"
        "$RAFT_PYTHON" scripts/check_environment.py "$@" >/dev/null 2>&1 || return 1
        PYTHON="$RAFT_PYTHON"
        return 0
    fi
    if [ -z "$prefix" ] || [ "$prefix" -ef "$RAFT_VENV" ]; then return 1; fi
    candidate="$prefix/bin/python"
    [ -x "$candidate" ] || die "the active environment $prefix has no bin/python; deactivate it or repair it"
    if lacking="$("$candidate" scripts/check_environment.py "$@")"; then
        PYTHON="$candidate"
        return 0
    fi
    # conda activates its base environment in every shell: that is no sign that somebody chose it.
    if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" = base ]; then return 1; fi
    case "$lacking" in *torch*) [ -z "${DS_ACCELERATOR:-}" ] || install=" --extra-index-url $CPU_TORCH_INDEX" ;; esac
    say "the active environment $prefix is used as it is, but it lacks:"
    printf '           %s\n' "${lacking//$'\n'/$'\n'           }" >&2
    say "install that:   $candidate -m pip install$install -c '$RAFT_ROOT/constraints.txt' -e '$RAFT_ROOT${1:+[$1]}'"
    die "or deactivate the environment: then the scripts make and use $RAFT_VENV"
}

# The stamp holds what the environment was made from, then the extras in it. It is written last.
environment_is_ready() {
    local wanted="$1" stamp="$RAFT_VENV/.raft-ready" found extra
    shift
    if [ ! -x "$RAFT_VENV/bin/python" ] || [ ! -f "$stamp" ]; then return 1; fi
    read -r found <"$stamp" || return 1
    [ "$found" = "$wanted" ] || return 1
    for extra in "$@"; do grep -qx "$extra" "$stamp" || return 1; done
}

set_up_environment() {
    local wanted="$1" stamp="$RAFT_VENV/.raft-ready" started=$SECONDS extras
    environment_is_ready "$@" && return
    shift
    extras="$(printf '%s\n' "$@" && { sed 1d "$stamp" 2>/dev/null || true; })"
    make_venv
    rm -f "$stamp"
    : >"$RAFT_VENV/setup.log"
    if [ "${DS_ACCELERATOR:-}" = cpu ]; then install_cpu_torch; fi
    say "installing this toolkit and the packages it needs"
    extras="$(printf '%s\n' "$extras" | sed '/^$/d' | sort -u)"
    pip_install -e "$RAFT_ROOT${extras:+[$(printf '%s' "$extras" | tr '\n' ,)]}" || die_with_log
    rm -f "$RAFT_VENV.unfinished"
    printf '%s\n' "$wanted" ${extras:+"$extras"} >"$stamp.part"
    mv "$stamp.part" "$stamp"
    say "the environment is ready ($((SECONDS - started)) s)"
}

# What an interrupted pip leaves may look installed without being so: such an environment is made anew. The mark of
# an unfinished one lies beside it, so that clearing it does not remove the mark.
make_venv() {
    local base clear=""
    base="$(find_python)"
    if [ -e "$RAFT_VENV.unfinished" ]; then
        say "an earlier set-up was interrupted; starting it again"
        clear=--clear
    elif [ -e "$RAFT_VENV/pyvenv.cfg" ]; then
        "$PYTHON" -c '' 2>/dev/null || clear=--clear # the interpreter that it was made with is gone
    elif [ -d "$RAFT_VENV" ] && [ -n "$(ls -A "$RAFT_VENV")" ]; then
        die "$RAFT_VENV is there but is no virtual environment; move it away or set RAFT_VENV to another directory"
    fi
    say "setting up $RAFT_VENV with $base; takes one to five minutes the first time (log: $RAFT_VENV/setup.log)"
    : >"$RAFT_VENV.unfinished"
    if [ -n "$clear" ] || ! "$PYTHON" -c 'import pip' 2>/dev/null; then
        "$base" -m venv ${clear:+"$clear"} "$RAFT_VENV" >&2 || die "$base could not make $RAFT_VENV (see above)"
    fi
}

find_python() {
    local candidate
    local test='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))'
    if [ -n "${RAFT_PYTHON:-}" ]; then
        "$RAFT_PYTHON" -c "$test" 2>/dev/null || die "RAFT_PYTHON=$RAFT_PYTHON is no Python 3.10 or newer with venv"
        printf '%s\n' "$RAFT_PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3 python3.10 python; do
        if "$candidate" -c "$test" 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "found no Python 3.10 or newer with the venv module (Debian, Ubuntu: apt install python3-venv);" \
        "RAFT_PYTHON=/path/to/python names one"
}

# A plain torch from PyPI brings gigabytes of CUDA: first the CPU build from the indexes that pip is set up with,
# then from PyTorch's own, at last whatever PyPI has.
install_cpu_torch() {
    local version
    version="$(sed -n 's/^torch==\([^ ;+]*\).*/\1/p' constraints.txt)"
    say "installing torch $version for the CPU"
    pip_install "torch==$version+cpu" ||
        pip_install --retries 1 --timeout 15 --extra-index-url "$CPU_TORCH_INDEX" "torch==$version+cpu" ||
        pip_install "torch==$version" || die_with_log
}

pip_install() {
    DS_BUILD_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$PYTHON" -m pip install -c constraints.txt "$@" </dev/null >>"$RAFT_VENV/setup.log" 2>&1
}

# pip installs nothing before it has everything, so that after an error of its own the environment can stay.
die_with_log() {
    rm -f "$RAFT_VENV.unfinished"
    tail -n 20 "$RAFT_VENV/setup.log" >&2
    die "pip failed (its last lines are above, all of them in $RAFT_VENV/setup.log); run the script again to go on"
}

# ---------------------------------------------------------------- the embedded model

ensure_default_model() {
    if dry_run || [ -e "$DEFAULT_MODEL/raft_prepared.json" ]; then return; fi
    mkdir -p output_models
    locked "output_models/.prepare.lock" prepare_default_model
}

prepare_default_model() {
    if [ -e "$DEFAULT_MODEL/raft_prepared.json" ]; then return; fi
    say "preparing $DEFAULT_MODEL (93 MB to download, then about half a minute, once)"
    "$PYTHON" -m raft prepare --output_dir "$DEFAULT_MODEL" || die "could not prepare $DEFAULT_MODEL"
}

# uses_defaults FLAG... -- ARGUMENTS: true unless every FLAG stands in ARGUMENTS, or in a YAML file that --config
# names there. A script asks it whether the embedded model will be needed.
uses_defaults() {
    local flag wanted="" value="" configs=""
    while [ "$1" != -- ]; do
        wanted="$wanted $1"
        shift
    done
    shift
    for value in "$@"; do
        case "$value" in --help | -h) return 1 ;; esac
    done
    configs="$(config_files "$@")"
    for flag in $wanted; do
        named_in_arguments "$flag" "$@" || named_in_files "$flag" "$configs" || return 0
    done
    return 1
}

named_in_arguments() {
    local flag="$1" value
    shift
    for value in "$@"; do
        value="${value%%=*}"
        [ "${value//-/_}" = "__$flag" ] && return 0
    done
    return 1
}

named_in_files() {
    local flag="$1" file
    while read -r file; do
        if [ -f "$file" ] && grep -Eq "^[[:space:]]*['\"]?${flag}['\"]?[[:space:]]*:" "$file"; then return 0; fi
    done <<<"$2"
    return 1
}

# The files after --config (there may be several), one a line.
config_files() {
    local value taking=""
    for value in "$@"; do
        case "$value" in
            --config) taking=1 ;;
            --config=*) own_path config "${value#--config=}" && printf '%s\n' "$REPLY" ;;
            --*) taking="" ;;
            *) if [ -n "$taking" ]; then own_path config "$value" && printf '%s\n' "$REPLY"; fi ;;
        esac
    done
}

# ---------------------------------------------------------------- starting the work

# launch COMMAND ARGUMENTS...: runs `python -m raft COMMAND ARGUMENTS...` in the right number of processes.
launch() {
    local command="$1" num_processes
    shift
    read_arguments "$@"
    num_processes="$NPROC"
    # torchrun or deepspeed around this script: it is one of the ranks already.
    if [ -n "${RANK:-}" ] && [ -n "${WORLD_SIZE:-}" ]; then num_processes=1; fi
    set -- "$PYTHON" -m raft "$command" ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
    if [ "$num_processes" -gt 1 ]; then
        shift
        set -- "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$num_processes" "$@"
        # torchrun would give every process one thread.
        if [ -n "${DS_ACCELERATOR:-}" ] && [ -z "${OMP_NUM_THREADS:-}" ]; then
            OMP_NUM_THREADS=$(($(getconf _NPROCESSORS_ONLN) / num_processes))
            [ "$OMP_NUM_THREADS" -ge 1 ] || OMP_NUM_THREADS=1
            export OMP_NUM_THREADS
        fi
    fi
    if dry_run; then
        print_command "$@"
    else
        exec "$@"
    fi
}

# Takes --nproc out of the arguments (into NPROC) and makes paths of the caller's absolute; the rest goes to
# ARGUMENTS as it is.
read_arguments() {
    local flag=""
    NPROC="${NUM_PROCESSES:-1}"
    ARGUMENTS=()
    while [ $# -gt 0 ]; do
        case "$1" in
            --nproc=*) NPROC="${1#--nproc=}" ;;
            --nproc)
                [ $# -gt 1 ] || die "--nproc: how many processes? For example --nproc 2"
                NPROC="$2"
                shift
                ;;
            --*=*)
                flag="${1%%=*}"
                own_path "${flag#--}" "${1#*=}"
                ARGUMENTS+=("$flag=$REPLY")
                ;;
            --*)
                flag="$1"
                ARGUMENTS+=("$1")
                ;;
            *)
                own_path "${flag#--}" "$1"
                ARGUMENTS+=("$REPLY")
                ;;
        esac
        shift
    done
    case "$NPROC" in
        '' | *[!0-9]* | 0*) die "--nproc (or NUM_PROCESSES): found \"$NPROC\", expected a whole number from 1" ;;
    esac
}

# own_path FLAG VALUE: leaves VALUE in REPLY, made absolute where it is a path that counts from the caller's
# directory; FLAG is empty for values in front of the first flag. (Not printed: $(...) would eat the line ends of a value such as a stop string.)
own_path() {
    local flag="${1//-/_}" here="$RAFT_CALLER_DIR/$2"
    REPLY="$2"
    if [ "$RAFT_CALLER_DIR" = "$RAFT_ROOT" ] || [ -z "$2" ]; then return 0; fi
    case "$2" in /*) return 0 ;; esac
    case "$flag" in
        output*_dir | output*_path | output*_file) REPLY="$here" ;;
        '' | files | config | deepspeed* | gguf | adapter | compare | models | reward_base_model | *_path | *_dir | *_file | *_files) if [ -e "$here" ]; then REPLY="$here"; fi ;;
    esac
}
