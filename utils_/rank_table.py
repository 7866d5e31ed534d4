"""Average ranks of methods over settings and seeds, as a table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils_.report import check_metrics, remarks, rule_of, written
from utils_.run_groups import grouped_runs, ordered_labels, selected_values
from utils_.stats import average_ranks

if TYPE_CHECKING:
    import pandas as pd

# Of these less is better; of all others more.
LESS = (
    *("ece", "hamming_loss", "seconds", "seconds_per_round", "bytes_up", "bytes_down"),
    *("peak_rss_mb", "labels.noise_remaining"),
)
Blocks = Mapping[Hashable, Mapping[str, float]]


def ranks_table(
    frame: pd.DataFrame, *, selection: str = "last5", metric: str = "mAP", latex: bool = False
) -> str:
    """Average ranks over all pairs of setting and seed, without bounds and leaky runs.

    Arguments and errors are those of :func:`utils_.report.overview_table`.
    """
    check_metrics(frame, [metric], selection=selection)
    frame, repeated = grouped_runs(frame, selection)
    fair = frame[~frame["bound"].astype(bool) & ~frame["leaky"].astype(bool)]
    blocks: dict[Hashable, dict[str, float]] = {}
    for label, setting, replicate, value in zip(
        fair["label"],
        fair["setting"],
        fair["replicate"],
        selected_values(fair, selection, metric),
        strict=True,
    ):
        if not np.isnan(value):
            blocks.setdefault((setting, replicate), {})[label] = value
    rows, note = rank_rows(blocks, ordered_labels(fair), less=metric in LESS)
    lines = [
        f"Ranks by {metric}. {note}",
        rule_of(frame, selection, [metric]),
        *remarks(frame, repeated),
    ]
    return written({"Ranks": rows}, "\n".join(lines), latex=latex)


def rank_rows(
    blocks: Blocks, methods: Sequence[str], *, less: bool = False
) -> tuple[list[list[str]], str]:
    """The cells of the table below their head, best first, and a note on what they rest on.

    Args:
        blocks: {setting and seed: {method: score}}; a method that lacks some has no rank.
        methods: those that are ranked.
        less: whether a lower score is better.
    """
    complete = [m for m in methods if blocks and all(m in block for block in blocks.values())]
    head = ["method", "average rank"]
    if not complete:
        return [head], "No method has run on all settings and seeds."
    scores = np.array([[block[method] for method in complete] for block in blocks.values()])
    ranked = sorted(zip(average_ranks(-scores if less else scores), complete, strict=True))
    absent = [method for method in methods if method not in complete]
    note = f"Over {len(blocks)} pairs of setting and seed; 1 is best"
    note += " (less is better)." if less else "."
    if absent:
        note += f"\n\nWithout a rank, since runs are absent: {', '.join(absent)}."
    return [head, *([method, f"{rank:.2f}"] for rank, method in ranked)], note
