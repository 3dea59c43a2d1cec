#!/usr/bin/env bash
# An environment for what is measured beside this toolkit: the packages of .venv, and TRL at a pinned version.
#
#     bash benchmarks/peers.sh
#     .venv-benchmarks/bin/python benchmarks/parts.py
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "error: no .venv; bash scripts/run_tests.sh makes it" >&2; exit 1; }
.venv/bin/python -m venv .venv-benchmarks
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
site=$(.venv-benchmarks/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$packages" >"$site/toolkit.pth" # what is installed there is used, what is missing is added here
.venv-benchmarks/bin/python -m pip install --quiet --no-deps --requirement benchmarks/requirements.txt
.venv-benchmarks/bin/python -c 'import torch, trl; print("ready: torch", torch.__version__, "and trl", trl.__version__)'
