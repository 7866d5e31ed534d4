"""Which runs may be compared and averaged: settings, rows of methods, repetitions, bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils_.errors import UserError, nearest
from utils_.finished_runs import SELECTIONS

if TYPE_CHECKING:
    import pandas as pd

BASELINE, CLEAN = "fedavg", "clean"
# Options that do not part one setting from another.
APART = {"dataset", "noise", "noise_type", "missing", "missing_type"}  # in its name anyway
APART |= {"assume_negative"}  # in its name where it is on
APART |= {"method", "param", "seed", "data_seed"}  # compared, or repeated
APART |= {"device", "workers", "checkpoint_every", "cache_dir", "save_dir", "name"}  # practical


def grouped_runs(frame: pd.DataFrame, selection: str) -> tuple[pd.DataFrame, int]:
    """Name each run's ``setting``, its ``base`` (the setting but for the flaws), row and replicate.

    - A setting is the data set, the noise, the missing labels and every other option in which the
      runs differ, so that unlike runs are never averaged; ``parts`` lists these.
    - ``label`` is the row: the method, the parameters in which its runs differ, leaky or bound.
    - Of several runs alike in all but their folder the newest counts.

    Args:
        frame: what :func:`utils_.finished_runs.collect` returns.
        selection: one of ``SELECTIONS``.

    Returns:
        The runs without older repetitions, and how many those are.

    Raises:
        UserError: unknown selection, or no run.
    """
    if selection not in SELECTIONS:
        raise UserError(f"--selection {selection}: unknown rule; {nearest(selection, SELECTIONS)}")
    if frame.empty:
        raise UserError("no finished run to tabulate; train one with python src/main_fednml.py")
    return _prepared(frame)


def _prepared(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    runs = _records(frame)
    shared = [name for name in map(str, frame) if name.startswith("config.")]
    shared = [name for name in shared if name.removeprefix("config.") not in APART]
    varying = [name for name in shared if _varies(runs, name)]
    rest = [[f"{name[7:]} {run[name]}" for name in varying] for run in runs]
    bases = [[str(run["dataset"]), *more] for run, more in zip(runs, rest, strict=True)]
    parts = [[own[0], *_flaws(run), *own[1:]] for run, own in zip(runs, bases, strict=True)]
    frame = frame.assign(
        base=[", ".join(own) for own in bases],
        setting=[", ".join(own) for own in parts],
        label=_method_labels(runs),
        replicate=[f"{run['seed']}/{run.get('config.data_seed', '')}" for run in runs],
    )
    frame["parts"] = parts
    newest = frame.sort_values("finished", kind="stable")
    newest = newest.drop_duplicates(["setting", "label", "replicate"], keep="last")
    return newest, len(frame) - len(newest)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    lines = frame.to_dict("records")
    return [{str(name): value for name, value in line.items()} for line in lines]


def _varies(runs: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether runs differ in an option; a run that is older than the option does not differ."""
    # NaN, which does not equal itself, stands for an option that the run lacks.
    return len({str(run[name]) for run in runs if run[name] == run[name]}) > 1


def _flaws(run: Mapping[str, Any]) -> list[str]:
    """Return e.g. ``noise 0.4 (paper)`` and ``missing 0.5 (classes)``; only what acts."""
    found = []
    for name in ("noise", "missing"):
        rate, kind = run.get(f"config.{name}", np.nan), run.get(f"config.{name}_type", "")
        if np.isnan(rate):  # rows of compare.py, whose settings have names
            continue
        notes = [kind] if rate else []
        if name == "missing" and run.get("config.assume_negative") is True:
            notes.append("negatives assumed")
        found.append(f"{name} {rate:g}" + (f" ({', '.join(notes)})" if notes else ""))
    return found


def _method_labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the rows: the method, the parameters in which its runs differ, leaky or bound."""
    params: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for run in runs:
        params.setdefault((run["method"], run["leaky"]), []).append(_params(run))
    labels = []
    for run in runs:
        alike = params[run["method"], run["leaky"]]
        own = {
            name: value
            for name, value in _params(run).items()
            if any(str(other.get(name)) != str(value) for other in alike)
        }
        text = str(run["method"]) + "".join(f" {name}={value}" for name, value in own.items())
        # As text, because runs that are older than this mark have NaN there.
        text += " (warm-up only)" * (str(run.get("warmup_only")) == "True")
        labels.append(text + " (leaky)" * bool(run["leaky"]) + " (bound)" * bool(run["bound"]))
    return labels


def _params(run: Mapping[str, Any]) -> dict[str, Any]:
    params = run.get("config.param")
    return params if isinstance(params, dict) else {}


def with_bounds(frame: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Return the runs of a setting; without a clean-label run of its own it borrows them."""
    import pandas as pd

    group = frame[frame["setting"] == setting]
    if group["bound"].any():
        return group
    lent = frame[frame["bound"].astype(bool) & frame["base"].isin(group["base"])]
    lent = lent.drop_duplicates(["label", "replicate"], keep="last")
    return group if lent.empty else pd.concat([group, lent])


def by_label(group: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each row of a setting's table."""
    return {str(label): runs for label, runs in group.groupby("label")}


def ordered_labels(frame: pd.DataFrame) -> list[str]:
    """The labels, in the order in which their rows are shown."""
    first = _records(frame.drop_duplicates("label"))
    return [run["label"] for run in sorted(first, key=_row_rank)]


def _row_rank(run: Mapping[str, Any]) -> tuple[bool, bool, bool, str]:
    """FedAvg first, then the methods by name, leaky runs, bounds."""
    return (bool(run["bound"]), bool(run["leaky"]), run["method"] != BASELINE, run["label"])


def selected_values(runs: pd.DataFrame, selection: str, metric: str) -> np.ndarray:
    """(n,) a metric of each run under a rule of selection; NaN where none has it."""
    name = f"{selection}.{metric}"
    name = name if name in runs else metric  # what no rule selects: seconds, labels.noise_recall
    return runs[name].to_numpy(dtype=float) if name in runs else np.full(len(runs), np.nan)


def gap_shares(
    group: pd.DataFrame, runs: pd.DataFrame, selection: str, *, metric: str = "mAP"
) -> np.ndarray:
    """(n,) share of the gap between FedAvg and clean labels in a metric that each run closes.

    Runs are matched by their seeds. Those are left out whose setting lacks a bound of that seed, or
    where clean labels are not better than FedAvg.
    """

    def by_replicate(part: pd.DataFrame) -> dict[str, float]:
        return dict(zip(part["replicate"], selected_values(part, selection, metric), strict=True))

    low = by_replicate(group[group["label"] == BASELINE])
    bounds = group[group["bound"].astype(bool)]
    clean = bounds[bounds["method"] == CLEAN]  # where there are other bounds beside it
    high = by_replicate(bounds if clean.empty else clean)
    own = by_replicate(runs)
    shares = [
        (own[key] - low[key]) / (high[key] - low[key])
        for key in own
        if key in low and key in high and high[key] > low[key]
    ]
    return np.array(shares, dtype=float)


def column_heads(frame: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """What tells each setting from the others, and what all of them share."""
    fair = frame[~frame["bound"].astype(bool)]
    shown = frame[~frame["bound"].astype(bool) | ~frame["base"].isin(fair["base"])]
    parts = dict(sorted(zip(shown["setting"], shown["parts"], strict=True)))
    shared = [p for p in next(iter(parts.values())) if all(p in own for own in parts.values())]
    shared = shared if len(parts) > 1 else []
    heads = {name: ", ".join(p for p in own if p not in shared) for name, own in parts.items()}
    return heads, shared
