#!/usr/bin/env bash
# The published results on RFMiD beside ours: noise and missing classes in three settings, four sites.
#
#   bash scripts/reproduce_rfmid.sh             # needs data/rfmid (see data/README.md) and a GPU
#   SMOKE=1 bash scripts/reproduce_rfmid.sh     # a minute on synthetic: shows that all steps work
#
#   METHODS SEEDS JOBS DRY_RUN PYTHON          as for scripts/sweep.sh; arguments go to every run
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/reproduce.sh" rfmid "$@"
