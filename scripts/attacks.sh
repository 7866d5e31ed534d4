#!/usr/bin/env bash
# What each aggregator withstands: every attack x aggregator, and their table of mAP:
#
#   bash scripts/attacks.sh [options of main_fednml.py]
#   ATTACKS="none nan" AGGREGATORS="mean median" SEEDS="1 2" bash scripts/attacks.sh --rounds 20
#
# Preset quick, eight clients of which two attack: krum takes 2f + 3 = 7 at least. The runs lie in
# save/attacks/runs; finished ones are skipped and unfinished ones resumed, so a second call only
# shows the table. "mean+suppress" is the mean with --suppress-outliers; collude has the deviation of
# its paper, 1.5, and the other attacks the default scale.
#
#   SAVE=save/attacks_dirichlet bash scripts/attacks.sh --split dirichlet --alpha 0.3
#
# The second line is of sites that differ, where honest ones look odd. Which are held down, and how
# often a patch works: attack_table.py --value.
#
#   ATTACKS AGGREGATORS SEEDS     values of the grid, separated by spaces (default all, all, 1)
#   METHOD=fedavg                 the method
#   SAVE=save/attacks             where the runs lie, in runs/
#   NOISE MISSING                 one value each (default those of the data set)
#   JOBS, DRY_RUN, PYTHON         as for scripts/sweep.sh
set -f
unset CDPATH

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -z "$PYTHON" ]; then
    PYTHON=$root/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
attacks=${ATTACKS:-none nan nan_extras sign_flip gaussian label_flip backdoor collude free_ride}
aggregators=${AGGREGATORS:-mean uniform median trimmed krum multikrum geometric clip classwise mean+suppress}
save=${SAVE:-$root/save/attacks}

pairs=""
for aggregator in $aggregators; do
    suppress=false
    [ "$aggregator" = "${aggregator%+suppress}" ] || suppress=true
    pairs="$pairs,${aggregator%+suppress}:$suppress"
done
scaled=""
for attack in $attacks; do
    scale=4
    [ "$attack" != collude ] || scale=1.5
    scaled="$scaled,$attack:$scale"
done
listed() { printf '%s' "$*" | tr ' ' ','; }
grid=("attack,attack_scale=${scaled#,}" "aggregator,suppress_outliers=${pairs#,}")
grid+=("method=${METHOD:-fedavg}" "seed=$(listed ${SEEDS:-1})")
[ -z "$NOISE" ] || grid+=("noise=$NOISE")
[ -z "$MISSING" ] || grid+=("missing=$MISSING")
options=(--preset quick --clients 8 --attackers 2 --save-dir "$save" "$@")
sweep=("$PYTHON" "$root/scripts/sweep.py" --jobs "${JOBS:-1}")

[ -z "$DRY_RUN" ] || exec "${sweep[@]}" --dry-run --grid "${grid[@]}" -- "${options[@]}"
"${sweep[@]}" --grid "${grid[@]}" -- "${options[@]}" >/dev/null
code=$?
[ "$code" -le 1 ] || exit "$code" # bad input or interrupted; sweep.py has said which
"$PYTHON" "$root/scripts/attack_table.py" "$save/runs" || exit
exit "$code"
