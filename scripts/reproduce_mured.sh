#!/usr/bin/env bash
# The published results on MuReD beside ours: noise and missing classes in three settings, four sites.
#
#   bash scripts/reproduce_mured.sh             # needs data/mured (see data/README.md) and a GPU
#   SMOKE=1 bash scripts/reproduce_mured.sh     # a minute on synthetic: shows that all steps work
#
#   METHODS SEEDS JOBS DRY_RUN PYTHON          as for scripts/sweep.sh; arguments go to every run
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/reproduce.sh" mured "$@"
