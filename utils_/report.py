"""From finished run folders to one table a setting: mean and deviation over seeds, gap closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils_.errors import UserError, nearest
from utils_.finished_runs import SELECTIONS
from utils_.latex import booktabs
from utils_.markdown import aligned
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
# Whose best mean is bold, and whose gap is told: more is better, and no threshold of 0.5 decides.
RANKED = ("mAP", "macro_auroc", *YOUNG, "mAP_annotated", "mAP_missing", "val_best_mAP")
TENS, THOUSANDS = 10, 1000  # from which on fewer digits are shown
NO_METRICS = ("seed", "data_seed", "noise", "missing", "finished", "leaky", "bound")


def results_table(
    frame: pd.DataFrame,
    *,
    selection: str = "last5",
    metrics: Sequence[str] = (),
    latex: bool = False,
) -> str:
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
        metrics: what to show instead of ``COLUMNS``, see :func:`known_metrics`.
        latex: return LaTeX tables instead, each with its caption.

    Raises:
        UserError: unknown selection or metric, or no run.
    """
    metrics = check_metrics(frame, metrics, selection=selection)
    frame, repeated = grouped_runs(frame, selection)
    columns = {name: name for name in metrics} or COLUMNS
    sections = {
        str(setting): _section(with_bounds(frame, str(setting)), selection, columns)
        for setting in sorted(frame["setting"].unique())
    }
    return written(sections, _caption(frame, selection, repeated, columns), latex=latex)


def overview_table(
    frame: pd.DataFrame,
    *,
    selection: str = "last5",
    metric: str = "mAP",
    latex: bool = False,
) -> str:
    """Return one Markdown table: a row for each method, a column for each setting.

    A cell holds the metric and, in brackets, ``gap closed``, and the number of seeds where it is
    smaller than that of other methods. What all settings share is left out of their names. A
    setting with nothing but a bound, which it lends to the others, has no column.

    Arguments and errors are those of :func:`results_table`.
    """
    check_metrics(frame, [metric], selection=selection)
    frame, repeated = grouped_runs(frame, selection)
    heads, shared = column_heads(frame)
    columns = [_brief(with_bounds(frame, setting), selection, metric) for setting in heads]
    lines = [[label, *(c.get(label, "") for c in columns)] for label in ordered_labels(frame)]
    common = f"All: {', '.join(shared)}.\n" if shared else ""
    caption = common + _caption(frame, selection, repeated, {metric: metric})
    return written({"": [["method", *heads.values()], *lines]}, caption, latex=latex)


def written(
    tables: Mapping[str, Sequence[Sequence[str]]], caption: str, *, latex: bool = False
) -> str:
    """Tables by their titles as Markdown with the caption below, or as LaTeX, each with it."""
    if latex:
        texts = {title: f"{title}. {caption}" if title else caption for title in tables}
        return "\n\n".join(booktabs(t[0], t[1:], caption=texts[n]) for n, t in tables.items())
    parts = [f"### {n}\n\n" * bool(n) + aligned(table) for n, table in tables.items()]
    return "\n\n".join([*parts, caption])


def known_metrics(frame: pd.DataFrame, selection: str) -> list[str]:
    """Names of the numbers that the runs have: those of the rule of selection, and others.

    ``macro_f1`` is ``last5.macro_f1`` under the rule ``last5``; ``seconds`` and
    ``labels.noise_recall`` belong to no rule.
    """
    names = [str(name) for name in frame.select_dtypes("number")]
    own = [n.partition(".")[2] for n in names if n.startswith(f"{selection}.")]
    apart = tuple(f"{rule}." for rule in (*SELECTIONS, "config"))
    others = [n for n in names if not n.startswith(apart) and n not in NO_METRICS]
    return [*own, *others]


def check_metrics(frame: pd.DataFrame, names: Sequence[str], *, selection: str) -> list[str]:
    """Return the names, each once.

    Raises:
        UserError: the runs have no such number; the nearest name is told.
    """
    known = known_metrics(frame, selection) if len(frame) and selection in SELECTIONS else names
    for name in names:
        if name not in known:
            raise UserError(f"--metric {name}: no number of these runs; {nearest(name, known)}")
    return list(dict.fromkeys(names))


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


def _section(group: pd.DataFrame, selection: str, columns: Mapping[str, str]) -> list[list[str]]:
    """The cells of a table: a row for each method, below the head."""
    rows = by_label(group)
    heads = [head for head, metric in columns.items() if _shown(group, selection, metric)]
    found = {head: _marked(rows, selection, columns[head]) for head in heads}
    found["seeds"] = {label: str(len(rows[label])) for label in rows}
    if (first := next(iter(columns.values()))) in RANKED:
        found["gap closed"] = {n: _gap_closed(group, rows[n], selection, first) for n in rows}
    lines = [[label, *(c[label] for c in found.values())] for label in ordered_labels(group)]
    return [["method", *found], *lines]


def _shown(group: pd.DataFrame, selection: str, metric: str) -> bool:
    return metric not in YOUNG or not np.isnan(selected_values(group, selection, metric)).all()


def _brief(group: pd.DataFrame, selection: str, metric: str) -> dict[str, str]:
    """For each method a metric and, in brackets, the share of the gap that is closed."""
    rows = by_label(group)
    cells, most = _marked(rows, selection, metric), max(map(len, rows.values()))
    for label, runs in rows.items():
        gap = _gap_closed(group, runs, selection, metric) if metric in RANKED else ""
        notes = [gap.replace(" (", ", ").rstrip(")")]
        if len(runs) < most:
            notes.append(f"{len(runs)} of {most} seeds")
        known = dict.fromkeys(note for note in ", ".join(notes).split(", ") if note)
        cells[label] += f" ({', '.join(known)})" if known else ""
    return cells


def _marked(rows: Mapping[str, pd.DataFrame], selection: str, metric: str) -> dict[str, str]:
    """For each label mean and deviation of a metric; the best fair one may be bold."""
    values = {label: selected_values(runs, selection, metric) for label, runs in rows.items()}
    fair = [label for label in rows if not rows[label][["leaky", "bound"]].any(axis=None)]
    best = _best({label: values[label] for label in fair}) if metric in RANKED else []
    marks = {label: "**" if label in best else "" for label in rows}
    return {
        label: marks[label] + mean_and_deviation(values[label]) + marks[label] for label in rows
    }


def _best(values: Mapping[str, np.ndarray]) -> list[str]:
    """Labels of the highest mean; none unless at least two are compared."""
    means = {label: value.mean() for label, value in values.items() if not np.isnan(value).any()}
    if len(means) < 2:
        return []
    return [label for label, mean in means.items() if mean == max(means.values())]


def mean_and_deviation(values: np.ndarray) -> str:
    """``0.351 ± 0.007``; a dash where some of the (seeds,) numbers are absent."""
    if np.isnan(values).any():
        return "–"  # a mean over some of the seeds would not say so
    most = np.abs(values).max()
    digits = "{:.3f}" if most < TENS else "{:.1f}" if most < THOUSANDS else "{:,.0f}"
    text = digits.format(values.mean())
    return text if len(values) == 1 else f"{text} ± {digits.format(values.std(ddof=1))}"


def _gap_closed(group: pd.DataFrame, runs: pd.DataFrame, selection: str, metric: str) -> str:
    """Share of the gap between FedAvg and clean labels, in percent; blank if undefined."""
    shares = gap_shares(group, runs, selection, metric=metric)
    if not len(shares) or np.isnan(shares).any():
        return ""
    text = f"{100 * np.mean(shares):.0f} %"
    return text if len(shares) == len(runs) else f"{text} ({len(shares)} of {len(runs)} seeds)"


def _caption(frame: pd.DataFrame, selection: str, repeated: int, columns: Mapping[str, str]) -> str:
    lines = [rule_of(frame, selection, columns.values())]
    if any(metric in RANKED for metric in columns.values()):
        lines.append(
            "Bold: best mean, bounds and leaky runs apart. macro-F1, recall and BACC, at threshold "
            "0.5, are never bold: methods that adjust logits or weigh classes shift them without "
            "ranking images better."
        )
    if (first := next(iter(columns.values()))) in RANKED:
        lines.append(f"Gap closed: (method - fedavg) / (clean - fedavg) in {first}.")
    return "\n".join([*lines, *remarks(frame, repeated)])


def rule_of(frame: pd.DataFrame, selection: str, metrics: Iterable[str] = ("mAP",)) -> str:
    """What a caption begins with: which round counts, and the seeds."""
    seeds = ", ".join(str(seed) for seed in sorted(set(frame["seed"])))
    rule = f"Test set, {SELECTIONS[selection]} (selection rule {selection})."
    if all(f"{selection}.{m}" not in frame and m in frame for m in metrics):
        rule = "Of the run as a whole, by no rule of selection."
    return f"{rule} Seeds: {seeds}; mean ± standard deviation over seeds."


def remarks(frame: pd.DataFrame, repeated: int) -> list[str]:
    """What a caption ends with: hardware, what the marks of the rows mean, what is left out."""
    hardware = "; ".join(sorted(set(frame["hardware"]) - {""})) or "not recorded"
    lines = [f"Hardware: {hardware}."]
    if frame["leaky"].any():
        lines.append("(leaky): trained with labels hidden from its sites; never compare as equal.")
    if frame["bound"].any():
        lines.append("(bound): trained with the true labels, which no real site has.")
    if "val_best_mAP" in frame:
        lines.append("Rows of compare.py: its show has p-values, and says which seeds tuned.")
    if repeated:
        lines.append(f"{repeated} older repetition(s) of the same run left out.")
    return lines
