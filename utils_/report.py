"""From finished run folders to one table a setting: mean and deviation over seeds, gap closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils_.errors import UserError, nearest
from utils_.finished_runs import SELECTIONS

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
BASELINE = "fedavg"
# Options that do not part one setting from another.
APART = {"dataset", "noise", "noise_type", "missing", "missing_type"}  # in its name anyway
APART |= {"assume_negative"}  # in its name where it is on
APART |= {"method", "param", "seed", "data_seed"}  # compared, or repeated
APART |= {"device", "workers", "checkpoint_every", "cache_dir", "save_dir", "name"}  # practical


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
    frame, repeated = _checked(frame, selection)
    sections = []
    for setting in sorted(frame["setting"].unique()):
        group = _with_bounds(frame, setting)
        sections.append(f"### {setting}\n\n{_section(group, selection)}")
    return "\n\n".join([*sections, _caption(frame, selection, repeated)])


def overview_table(frame: pd.DataFrame, *, selection: str = "last5") -> str:
    """Return one Markdown table: a row for each method, a column for each setting.

    A cell holds mAP and, in brackets, ``gap closed``, and the number of seeds where it is smaller
    than that of other methods. What all settings share is left out of their names. A setting with
    nothing but a bound, which it lends to the others, has no column.

    Arguments and errors are those of :func:`results_table`.
    """
    frame, repeated = _checked(frame, selection)
    heads, shared = _column_heads(frame)
    columns = [_brief(_with_bounds(frame, setting), selection) for setting in heads]
    lines = [[label, *(c.get(label, "") for c in columns)] for label in _ordered(frame)]
    table = _aligned([["method", *heads.values()], *lines])
    common = f"All: {', '.join(shared)}.\n" if shared else ""
    return f"{table}\n\n{common}{_caption(frame, selection, repeated)}"


def overview_values(
    frame: pd.DataFrame, *, selection: str = "last5"
) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of :func:`overview_table`: {column: {row: (seeds,) mAP of its runs}}."""
    frame, _ = _checked(frame, selection)
    heads, _ = _column_heads(frame)
    order = _ordered(frame)
    found = {}
    for setting, head in heads.items():
        rows = _by_label(_with_bounds(frame, setting))
        found[head] = {n: _values(rows[n], selection, "mAP") for n in order if n in rows}
    return found


def _column_heads(frame: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """What tells each setting from the others, and what all of them share."""
    fair = frame[~frame["bound"].astype(bool)]
    shown = frame[~frame["bound"].astype(bool) | ~frame["base"].isin(fair["base"])]
    parts = dict(sorted(zip(shown["setting"], shown["parts"], strict=True)))
    shared = [p for p in next(iter(parts.values())) if all(p in own for own in parts.values())]
    shared = shared if len(parts) > 1 else []
    heads = {name: ", ".join(p for p in own if p not in shared) for name, own in parts.items()}
    return heads, shared


def _checked(frame: pd.DataFrame, selection: str) -> tuple[pd.DataFrame, int]:
    """See :func:`_prepared`; refuses an unknown selection and a frame without runs."""
    if selection not in SELECTIONS:
        raise UserError(f"--selection {selection}: unknown rule; {nearest(selection, SELECTIONS)}")
    if frame.empty:
        raise UserError("no finished run to tabulate; train one with python src/main_fednml.py")
    return _prepared(frame)


def _prepared(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Name each run's setting, its base (the setting but for the flaws), row and replicate.

    Returns:
        The runs without older repetitions, and how many those are.
    """
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
        rate, kind = run.get(f"config.{name}", 0), run.get(f"config.{name}_type", "")
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


def _with_bounds(frame: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Return the runs of a setting; without a clean-label run of its own it borrows them."""
    import pandas as pd

    group = frame[frame["setting"] == setting]
    if group["bound"].any():
        return group
    lent = frame[frame["bound"].astype(bool) & frame["base"].isin(group["base"])]
    lent = lent.drop_duplicates(["label", "replicate"], keep="last")
    return group if lent.empty else pd.concat([group, lent])


def _section(group: pd.DataFrame, selection: str) -> str:
    """One Markdown table: a row for each method."""
    rows = _by_label(group)
    heads = [head for head, metric in COLUMNS.items() if _shown(group, selection, metric)]
    columns = [_marked(rows, selection, COLUMNS[head]) for head in heads]
    columns.append({label: str(len(rows[label])) for label in rows})
    columns.append({label: _gap_closed(group, rows[label], selection) for label in rows})
    lines = [[label, *(column[label] for column in columns)] for label in _ordered(group)]
    return _aligned([["method", *heads, "seeds", "gap closed"], *lines])


def _shown(group: pd.DataFrame, selection: str, metric: str) -> bool:
    return metric not in YOUNG or not np.isnan(_values(group, selection, metric)).all()


def _brief(group: pd.DataFrame, selection: str) -> dict[str, str]:
    """For each method mAP and, in brackets, the share of the gap that is closed."""
    rows = _by_label(group)
    cells, most = _marked(rows, selection, "mAP"), max(map(len, rows.values()))
    for label, runs in rows.items():
        notes = [_gap_closed(group, runs, selection).replace(" (", ", ").rstrip(")")]
        if len(runs) < most:
            notes.append(f"{len(runs)} of {most} seeds")
        known = dict.fromkeys(note for note in ", ".join(notes).split(", ") if note)
        cells[label] += f" ({', '.join(known)})" if known else ""
    return cells


def _by_label(group: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(label): runs for label, runs in group.groupby("label")}


def _ordered(frame: pd.DataFrame) -> list[str]:
    """The labels, in the order in which their rows are shown."""
    first = _records(frame.drop_duplicates("label"))
    return [run["label"] for run in sorted(first, key=_row_rank)]


def _marked(rows: Mapping[str, pd.DataFrame], selection: str, metric: str) -> dict[str, str]:
    """For each label mean and deviation of a metric; the best fair one may be bold."""
    values = {label: _values(runs, selection, metric) for label, runs in rows.items()}
    fair = [label for label in rows if not rows[label][["leaky", "bound"]].any(axis=None)]
    best = [] if metric in AT_HALF else _best({label: values[label] for label in fair})
    marks = {label: "**" if label in best else "" for label in rows}
    return {
        label: marks[label] + _mean_and_deviation(values[label]) + marks[label] for label in rows
    }


def _row_rank(run: Mapping[str, Any]) -> tuple[bool, bool, bool, str]:
    """FedAvg first, then the methods by name, leaky runs, bounds."""
    return (bool(run["bound"]), bool(run["leaky"]), run["method"] != BASELINE, run["label"])


def _values(runs: pd.DataFrame, selection: str, metric: str) -> np.ndarray:
    name = f"{selection}.{metric}"
    return runs[name].to_numpy(dtype=float) if name in runs else np.full(len(runs), np.nan)


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

    def by_replicate(part: pd.DataFrame) -> dict[str, float]:
        return dict(zip(part["replicate"], _values(part, selection, "mAP"), strict=True))

    low = by_replicate(group[group["label"] == BASELINE])
    high = by_replicate(group[group["bound"].astype(bool)])
    own = by_replicate(runs)
    shares = [
        (own[key] - low[key]) / (high[key] - low[key])
        for key in own
        if key in low and key in high and high[key] > low[key]
    ]
    if not shares or np.isnan(shares).any():
        return ""
    text = f"{100 * np.mean(shares):.0f} %"
    return text if len(shares) == len(own) else f"{text} ({len(shares)} of {len(own)} seeds)"


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
