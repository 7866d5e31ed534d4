#!/usr/bin/env bash
# A grid of runs, methods x noise x missing x seeds, and their table:
#
#   METHODS="fedavg fednml clean" NOISE="0.2 0.4" MISSING="0.5" SEEDS="1 2 3" \
#       bash scripts/sweep.sh --dataset isic --rounds 20
#
# All arguments go to src/main_fednml.py. What is not given keeps the program's (or the preset's)
# value. scripts/sweep.py does it, over any setting: see its --help for what is skipped, resumed and
# done anew, and for the exit codes.
#
#   METHODS NOISE MISSING SEEDS   values of the grid, separated by spaces
#   JOBS=2                        runs side by side (default 1)
#   DRY_RUN=1                     print the commands and the time they take, train nothing;
#                                 DRY_RUN=measure: train a few rounds to tell the time
#   PYTHON=/path/to/python        interpreter (default .venv/bin/python, else python3)
#
# No "set -u": bash 3.2 calls an empty list unset.
set -f # values of the grid are words, never file name patterns
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -z "$PYTHON" ]; then
    PYTHON=$root/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi

listed() { printf '%s' "$*" | tr ' ' ','; }
grid=("method=$(listed ${METHODS:-fedavg fednml clean})")
[ -z "$NOISE" ] || grid+=("noise=$(listed $NOISE)")
[ -z "$MISSING" ] || grid+=("missing=$(listed $MISSING)")
[ -z "$SEEDS" ] || grid+=("seed=$(listed $SEEDS)")
options=(--jobs "${JOBS:-1}")
[ -z "$DRY_RUN" ] || options+=(--dry-run)
[ "$DRY_RUN" != measure ] || options+=(--measure)
exec "$PYTHON" "$root/scripts/sweep.py" "${options[@]}" --grid "${grid[@]}" -- "$@"
