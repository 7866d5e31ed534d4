"""Scores of every class: a row a class, a column a method, for each setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from utils_.errors import UserError, nearest
from utils_.report import mean_and_deviation, remarks, rule_of, written
from utils_.run_groups import by_label, grouped_runs, ordered_labels, with_bounds

if TYPE_CHECKING:
    import pandas as pd

ROUND = "last"  # scores of classes are those of the model after the last round
NOT_TRAINED = "not trained"


def classes_table(frame: pd.DataFrame, *, metric: str = "ap", latex: bool = False) -> str:
    """Mean and deviation over seeds of each class, the class with most positives first.

    A class that no site annotates in any run of a method is not trained. A dash stands where a
    class could not be measured in some of the runs.

    Args:
        frame: what :func:`utils_.finished_runs.collect` returns.
        metric: ``ap`` or another number of ``per_class`` in result.json.
        latex: return LaTeX tables, each with its caption.

    Raises:
        UserError: no run tells of its classes, or not this number.
    """
    frame, repeated = grouped_runs(frame, ROUND)
    if "per_class" not in frame or not (told := frame["per_class"].map(bool)).any():
        raise UserError("--per-class: these rows hold no scores of classes; give run folders")
    silent = int((~told).sum())
    frame = frame[told]
    _check_metric(frame, metric)
    tables = {}
    for setting in sorted(frame["setting"].unique()):
        tables[str(setting)] = _cells(with_bounds(frame, str(setting)), metric)
    caption = [f"Each class: {metric}; positives: in the test set.", rule_of(frame, ROUND)]
    caption += remarks(frame, repeated)
    if silent:
        caption.append(f"{silent} runs left out, which tell nothing of their classes.")
    return written(tables, "\n".join(caption), latex=latex)


def _check_metric(frame: pd.DataFrame, metric: str) -> None:
    known = {n for run in frame["per_class"] for own in run.values() for n in own}
    known -= {"positives", "evaluated", "few", "trained", "intervals"}
    if metric not in known:
        raise UserError(f"--metric {metric}: no number of a class; {nearest(metric, known)}")


def _cells(group: pd.DataFrame, metric: str) -> list[list[str]]:
    rows = by_label(group)
    labels = ordered_labels(group)
    tables = {label: list(rows[label]["per_class"]) for label in labels}
    positives = _positives(group)
    order = sorted(positives, key=lambda name: -positives[name][0])
    lines = [
        [name, _spoken(positives[name]), *(_cell(tables[label], name, metric) for label in labels)]
        for name in order
    ]
    return [["class", "positives", *labels], *lines]


def _positives(group: pd.DataFrame) -> dict[str, list[int]]:
    """{class: the different counts of positives in the test sets of the runs, highest first}."""
    found: dict[str, set[int]] = {}
    for run in group["per_class"]:
        for name, own in run.items():
            found.setdefault(name, set()).add(int(own.get("positives") or 0))
    return {name: sorted(counts, reverse=True) for name, counts in found.items()}


def _spoken(counts: list[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[-1]} to {counts[0]}"


def _cell(runs: list[Mapping[str, Any]], name: str, metric: str) -> str:
    own = [run.get(name, {}) for run in runs]
    if not any(one.get("trained", True) for one in own):
        return NOT_TRAINED
    return mean_and_deviation(np.array([_number(one.get(metric)) for one in own]))


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
