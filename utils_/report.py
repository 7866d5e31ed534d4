"""From finished run folders to one table a setting: mean and deviation over seeds, gap closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils_.finished_runs import SELECTIONS
from utils_.run_groups import (
    by_label,
    column_heads,
    gap_shares,
    grouped_runs,
    ordered_labels,
    selected_values,
    with_bounds,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "mAP": "mAP",
    "macro-F1": "macro_f1",
    "recall": "macro_recall",
    "BACC": "balanced_accuracy",
    "AUROC": "macro_auroc",
    "F1 (val. thr.)": "macro_f1_tuned",
    "BACC (val. thr.)": "balanced_accuracy_tuned",
}
YOUNG = ("macro_f1_tuned", "balanced_accuracy_tuned")  # no column where no run has them
AT_HALF = ("macro_f1", "macro_recall", "balanced_accuracy")  # at threshold 0.5: never bold


def results_table(frame: pd.DataFrame, *, selection: str = "last5") -> str:
    """Return Markdown: for each setting a table of methods, aligned for a terminal too.

    - A setting is the data set, the noise, the missing labels and every other option in which the
      runs differ, so that unlike runs are never averaged.
    - Values are mean ± standard deviation (ddof = 1) over seeds. The best mean of a column is bold,
      but not of those at threshold 0.5; bounds and leaky runs do not compete.
    - Columns at thresholds chosen on validation are left out where no run has them.
    - ``gap closed`` is (method - fedavg) / (clean - fedavg) in mAP, for each seed, then averaged
      over the seeds where both bounds exist and the denominator is positive.
    - A clean-label run serves as the bound of every setting that differs from its own in noise and
      missing labels only, since those do not touch it.
    - Of several runs alike in all but their folder the newest counts.

    Args:
        frame: what :func:`collect` returns.
        selection: one of ``SELECTIONS``.

    Raises:
        UserError: unknown selection, or no run.
    """
    frame, repeated = grouped_runs(frame, selection)
    sections = []
    for setting in sorted(frame["setting"].unique()):
        group = with_bounds(frame, setting)
        sections.append(f"### {setting}\n\n{_section(group, selection)}")
    return "\n\n".join([*sections, _caption(frame, selection, repeated)])


def overview_table(frame: pd.DataFrame, *, selection: str = "last5") -> str:
    """Return one Markdown table: a row for each method, a column for each setting.

    A cell holds mAP and, in brackets, ``gap closed``, and the number of seeds where it is smaller
    than that of other methods. What all settings share is left out of their names. A setting with
    nothing but a bound, which it lends to the others, has no column.

    Arguments and errors are those of :func:`results_table`.
    """
    frame, repeated = grouped_runs(frame, selection)
    heads, shared = column_heads(frame)
    columns = [_brief(with_bounds(frame, setting), selection) for setting in heads]
    lines = [[label, *(c.get(label, "") for c in columns)] for label in ordered_labels(frame)]
    table = _aligned([["method", *heads.values()], *lines])
    common = f"All: {', '.join(shared)}.\n" if shared else ""
    return f"{table}\n\n{common}{_caption(frame, selection, repeated)}"


def overview_values(
    frame: pd.DataFrame, *, selection: str = "last5"
) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of :func:`overview_table`: {column: {row: (seeds,) mAP of its runs}}."""
    frame, _ = grouped_runs(frame, selection)
    heads, _ = column_heads(frame)
    order = ordered_labels(frame)
    found = {}
    for setting, head in heads.items():
        rows = by_label(with_bounds(frame, setting))
        found[head] = {n: selected_values(rows[n], selection, "mAP") for n in order if n in rows}
    return found


def _section(group: pd.DataFrame, selection: str) -> str:
    """One Markdown table: a row for each method."""
    rows = by_label(group)
    heads = [head for head, metric in COLUMNS.items() if _shown(group, selection, metric)]
    columns = [_marked(rows, selection, COLUMNS[head]) for head in heads]
    columns.append({label: str(len(rows[label])) for label in rows})
    columns.append({label: _gap_closed(group, rows[label], selection) for label in rows})
    lines = [[label, *(column[label] for column in columns)] for label in ordered_labels(group)]
    return _aligned([["method", *heads, "seeds", "gap closed"], *lines])


def _shown(group: pd.DataFrame, selection: str, metric: str) -> bool:
    return metric not in YOUNG or not np.isnan(selected_values(group, selection, metric)).all()


def _brief(group: pd.DataFrame, selection: str) -> dict[str, str]:
    """For each method mAP and, in brackets, the share of the gap that is closed."""
    rows = by_label(group)
    cells, most = _marked(rows, selection, "mAP"), max(map(len, rows.values()))
    for label, runs in rows.items():
        notes = [_gap_closed(group, runs, selection).replace(" (", ", ").rstrip(")")]
        if len(runs) < most:
            notes.append(f"{len(runs)} of {most} seeds")
        known = dict.fromkeys(note for note in ", ".join(notes).split(", ") if note)
        cells[label] += f" ({', '.join(known)})" if known else ""
    return cells


def _marked(rows: Mapping[str, pd.DataFrame], selection: str, metric: str) -> dict[str, str]:
    """For each label mean and deviation of a metric; the best fair one may be bold."""
    values = {label: selected_values(runs, selection, metric) for label, runs in rows.items()}
    fair = [label for label in rows if not rows[label][["leaky", "bound"]].any(axis=None)]
    best = [] if metric in AT_HALF else _best({label: values[label] for label in fair})
    marks = {label: "**" if label in best else "" for label in rows}
    return {
        label: marks[label] + _mean_and_deviation(values[label]) + marks[label] for label in rows
    }


def _best(values: Mapping[str, np.ndarray]) -> list[str]:
    """Labels of the highest mean; none unless at least two are compared."""
    means = {label: value.mean() for label, value in values.items() if not np.isnan(value).any()}
    if len(means) < 2:
        return []
    return [label for label, mean in means.items() if mean == max(means.values())]


def _mean_and_deviation(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "–"  # a mean over some of the seeds would not say so
    text = f"{values.mean():.3f}"
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.3f}"


def _gap_closed(group: pd.DataFrame, runs: pd.DataFrame, selection: str) -> str:
    """Share of the gap between FedAvg and clean labels in mAP, in percent; blank if undefined."""
    shares = gap_shares(group, runs, selection)
    if not len(shares) or np.isnan(shares).any():
        return ""
    text = f"{100 * np.mean(shares):.0f} %"
    return text if len(shares) == len(runs) else f"{text} ({len(shares)} of {len(runs)} seeds)"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join([row[0].ljust(widths[0]), *rest]) + " |")
    return "\n".join(lines)


def _caption(frame: pd.DataFrame, selection: str, repeated: int) -> str:
    seeds = ", ".join(str(seed) for seed in sorted(set(frame["seed"])))
    hardware = "; ".join(sorted(set(frame["hardware"]) - {""})) or "not recorded"
    lines = [
        f"Test set, {SELECTIONS[selection]} (selection rule {selection}). Seeds: {seeds}; "
        "mean ± standard deviation over seeds.",
        "Bold: best mean, bounds and leaky runs apart. macro-F1, recall and BACC, at threshold "
        "0.5, are never bold: methods that adjust logits or weigh classes shift them without "
        "ranking images better.",
        "Gap closed: (method - fedavg) / (clean - fedavg) in mAP.",
        f"Hardware: {hardware}.",
    ]
    if frame["leaky"].any():
        lines.append("(leaky): trained with labels hidden from its sites; never compare as equal.")
    if frame["bound"].any():
        lines.append("(bound): trained with the true labels, which no real site has.")
    if repeated:
        lines.append(f"{repeated} older repetition(s) of the same run left out.")
    return "\n".join(lines)
