#!/usr/bin/env bash
# The comparison of all methods, from tuning to tables (docs/protocol.md):
#
#   bash scripts/compare.sh --jobs 4 --data odir=DIR          # everything
#   METHODS="fedavg fednml" SETTINGS=flip bash scripts/compare.sh      # a part
#   SMALL=1 bash scripts/compare.sh                           # two minutes, numbers without meaning
#
#   METHODS SETTINGS              some rows and test settings, separated by spaces (default all)
#   SAVE_DIR=save/compare-small   where SMALL=1 leaves everything
#   PYTHON=/path/to/python        interpreter (default .venv/bin/python, else python3)
#
# All arguments go to every step of scripts/compare.py. Finished runs are skipped: call it again
# after an interruption, or when something failed. It stops before the test until what was chosen is
# committed.
#
# Without "set -u": bash 3.2 calls an empty list unset.
set -e
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -z "$PYTHON" ]; then
    PYTHON=$root/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi

set -f # names are words, never file name patterns
tuning=() chosen=() test=() frozen=()
if [ -n "$SMALL" ]; then
    METHODS=${METHODS:-fedavg fednml} SETTINGS=${SETTINGS:-paper-0.4-4}
    place=${SAVE_DIR:-$root/save/compare-small}
    small=(--budget "$root/scripts/protocol/small.yaml" --save-dir "$place")
    tuning=("${small[@]}" --rows "$place/tuning.csv")
    chosen=(--chosen "$place/chosen.yaml")
    test=("${small[@]}" --rows "$place/test.csv")
    frozen=(--allow-dirty)
fi
if [ -n "$METHODS" ]; then
    tuning+=(--methods $METHODS)
    test+=(--methods $METHODS)
fi
[ -z "$SETTINGS" ] || test+=(--settings $SETTINGS)
compare() { "$PYTHON" "$root/scripts/compare.py" "$@"; }

# 1. All candidates on the tuning seed: 20 rows x 2 x 2 settings = 80 runs.
compare tune "${tuning[@]}" "$@"

# 2. The best candidate of each row by validation mAP: seconds.
compare choose "${tuning[@]}" "${chosen[@]}" "$@"

# 3. These on the test seeds: 20 rows x 13 settings x 5 seeds = 1,300 runs.
compare run "${test[@]}" "${chosen[@]}" "${frozen[@]}" "$@"

# 4. The tables: seconds.
compare show "${test[@]}" "$@"
