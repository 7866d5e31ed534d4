#!/usr/bin/env bash
# What each aggregator withstands: every attack x aggregator, and their table of mAP:
#
#   bash scripts/attacks.sh [options of main_fednml.py]
#   ATTACKS="none nan" AGGREGATORS="mean median" SEEDS="1 2" bash scripts/attacks.sh --rounds 20
#
# Preset quick, eight clients of which two attack: krum takes 2f + 3 = 7 at least. The runs lie in
# save/attacks/runs; finished ones are skipped and unfinished ones resumed, so a second call only
# shows the table. "mean+suppress" is the mean with --suppress-outliers.
#
#   ATTACKS AGGREGATORS SEEDS     values of the grid, separated by spaces (default all, all, 1)
#   METHOD=fedavg                 the method
#   NOISE MISSING                 one value each (default those of the data set)
#   JOBS, DRY_RUN, PYTHON         as for scripts/sweep.sh
#
# No "set -e": a failed run must not end the grid.
set -f
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -z "$PYTHON" ]; then
    PYTHON=$root/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
export PYTHON METHODS=${METHOD:-fedavg} SEEDS=${SEEDS:-1} NOISE=${NOISE:-} MISSING=${MISSING:-}
attacks=${ATTACKS:-none nan sign_flip gaussian label_flip}
aggregators=${AGGREGATORS:-mean uniform median trimmed krum multikrum geometric clip classwise mean+suppress}
save=$root/save/attacks

failed=""
for attack in $attacks; do
    for aggregator in $aggregators; do
        options=(--preset quick --clients 8 --attackers 2 --save-dir "$save")
        options+=(--attack "$attack" --aggregator "${aggregator%+suppress}")
        [ "$aggregator" = "${aggregator%+suppress}" ] || options+=(--suppress-outliers)
        if [ -n "$DRY_RUN" ]; then
            bash "$root/scripts/sweep.sh" "${options[@]}" "$@" || exit
            continue
        fi
        bash "$root/scripts/sweep.sh" "${options[@]}" "$@" >/dev/null
        code=$?
        case $code in
        0) ;;
        1) failed="$failed $attack/$aggregator" ;;
        *) exit "$code" ;; # bad input or interrupted; sweep.sh has said which
        esac
    done
done
[ -z "$DRY_RUN" ] || exit 0
"$PYTHON" "$root/scripts/attack_table.py" "$save/runs" || exit
if [ -n "$failed" ]; then
    printf 'attacks: FAILED:%s\n' "$failed" >&2
    exit 1
fi
