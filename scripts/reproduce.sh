#!/usr/bin/env bash
# What the scripts reproduce_*.sh share: reproduce.sh DATASET [options of main_fednml.py]
set -f # methods and seeds are words, never file name patterns
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -z "$PYTHON" ]; then
    PYTHON=$root/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
dataset=$1
shift
options=(--jobs "${JOBS:-1}")
[ -z "$METHODS" ] || options+=(--methods $METHODS)
[ -z "$SEEDS" ] || options+=(--seeds $SEEDS)
[ -z "$SMOKE" ] || options+=(--smoke)
[ -z "$DRY_RUN" ] || options+=(--dry-run)
[ "$DRY_RUN" != measure ] || options+=(--measure)
exec "$PYTHON" "$root/scripts/reproduce.py" "$dataset" "${options[@]}" -- "$@"
