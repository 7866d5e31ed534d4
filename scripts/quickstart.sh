#!/usr/bin/env bash
# From a fresh clone to a first result: bash scripts/quickstart.sh [options of main_fednml.py]
#
# Makes .venv, installs the core dependencies, trains FedAvg, FedNML and the clean-label bound on
# embedded data (preset quick, a few minutes on two cores) and shows their table. A second call
# only shows the table; after an interruption it goes on where it stopped.
set -euo pipefail
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/scripts/setup.sh"

export PYTHON=$root/.venv/bin/python
export METHODS="fedavg fednml clean" NOISE="" MISSING="" SEEDS="1" JOBS=1 DRY_RUN=""
exec bash "$root/scripts/sweep.sh" --preset quick "$@"
