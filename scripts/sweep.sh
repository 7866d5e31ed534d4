#!/usr/bin/env bash
# A grid of runs, methods x noise x missing x seeds, and their table:
#
#   METHODS="fedavg fednml clean" NOISE="0.2 0.4" MISSING="0.5" SEEDS="1 2 3" \
#       bash scripts/sweep.sh --dataset isic --rounds 20
#
# All arguments go to src/main_fednml.py. What is not given keeps the program's (or the preset's)
# value. Finished runs are skipped, unfinished ones resumed; runs of other labels or weights than
# those there now are not taken for finished. After a failed run the sweep goes on, names it at the
# end and exits with 1. Ctrl-C ends it resumably with 130.
#
#   METHODS NOISE MISSING SEEDS   values of the grid, separated by spaces
#   JOBS=2                        runs side by side (default 1)
#   DRY_RUN=1                     print the commands, train nothing
#   PYTHON=/path/to/python        interpreter (default .venv/bin/python, else python3)
#
# No "set -e": a failed run must not end the sweep. No "set -u": bash 3.2 calls an empty list unset.
set -f # values of the grid are words, never file name patterns
set -m # each run gets its own process group, so that Ctrl-C reaches it once, through stop_runs
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -z "$PYTHON" ]; then
    PYTHON=$root/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
jobs=${JOBS:-1}
main=("$PYTHON" "$root/src/main_fednml.py")

say() { printf 'sweep: %s\n' "$*" >&2; }

# One line a run: method, noise, missing, seed; "-" leaves the value to the program.
grid() {
    for seed in ${SEEDS:--}; do
        for noise in ${NOISE:--}; do
            for missing in ${MISSING:--}; do
                for method in ${METHODS:-fedavg fednml clean}; do
                    printf '%s %s %s %s\n' "$method" "$noise" "$missing" "$seed"
                done
            done
        done
    done
}

# Put the command of one run into the list "command": a new run, or the rest of an unfinished one.
compose() {
    command=("${main[@]}")
    if [ -d "$folder" ]; then
        command+=(--resume "$folder" "${side_by_side[@]}")
    else
        command+=("${side_by_side[@]}" "${options[@]}" --method "$method")
        [ "$noise" = - ] || command+=(--noise "$noise")
        [ "$missing" = - ] || command+=(--missing "$missing")
        [ "$seed" = - ] || command+=(--seed "$seed")
    fi
}

# Wait for the oldest run and note whether it failed.
finish_oldest() {
    local pid=${pids[0]} folder=${running[0]} code
    wait "$pid"
    code=$?
    while kill -0 "$pid" 2>/dev/null; do # a signal ends "wait" before the run is over
        wait "$pid"
        code=$?
    done
    pids=("${pids[@]:1}")
    running=("${running[@]:1}")
    [ "$code" -eq 0 ] || failed+=("$folder (exit code $code)")
}

# The first signal lets every run finish its round, a second one ends them at once.
stop_runs() {
    stopping=1
    [ "${#pids[@]}" -eq 0 ] || kill -TERM "${pids[@]}" 2>/dev/null
}

case $jobs in
'' | *[!0-9]* | 0*)
    say "JOBS=$jobs: give a number of runs, 1 or more"
    exit 2
    ;;
esac
options=(--save-dir "$root/save" "$@")
side_by_side=()
if [ "$jobs" -gt 1 ]; then # share the processors, and let no progress bars overwrite each other
    processors=$(getconf _NPROCESSORS_ONLN)
    workers=$((processors / jobs))
    side_by_side=(--quiet --workers "$((workers > 0 ? workers : 1))")
fi

# The whole grid is checked before the first run; each line comes back with the run's folder.
plan=$(grid | "$PYTHON" "$root/scripts/run_folders.py" "${options[@]}") || exit 2
if [ -z "$plan" ]; then
    say "the grid is empty; give METHODS, NOISE, MISSING and SEEDS values or leave them out"
    exit 2
fi

pids=() running=() failed=() folders=() stopping=""
trap stop_runs INT TERM HUP
while read -r method noise missing seed folder; do
    folders+=("$folder")
    if [ -f "$folder/DONE" ]; then
        say "finished already: $folder"
        continue
    fi
    compose
    if [ -n "$DRY_RUN" ]; then
        printf '%q ' "${command[@]}"
        printf '\n'
        continue
    fi
    [ "${#pids[@]}" -lt "$jobs" ] || finish_oldest
    [ -z "$stopping" ] || break
    say "$([ -d "$folder" ] && echo resuming || echo starting): $folder"
    "${command[@]}" </dev/null >/dev/null &
    pids+=("$!")
    running+=("$folder")
done <<<"$plan"
[ -z "$DRY_RUN" ] || exit 0
while [ "${#pids[@]}" -gt 0 ]; do
    finish_oldest
done
if [ -n "$stopping" ]; then
    say "interrupted; the same command goes on from here"
    exit 130
fi

finished=()
for folder in "${folders[@]}"; do
    [ ! -f "$folder/DONE" ] || finished+=("$folder")
done
if [ "${#finished[@]}" -gt 0 ]; then
    "$PYTHON" "$root/scripts/table.py" "${finished[@]}"
    printf '\nRuns:'
    printf '\n    %s' "${finished[@]}"
    printf '\nCurves: %q -m tensorboard.main --logdir %q\n' \
        "$PYTHON" "$(dirname -- "${finished[0]}")"
fi
for run in "${failed[@]}"; do
    say "FAILED: $run"
done
[ "${#failed[@]}" -eq 0 ]
