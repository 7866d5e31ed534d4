"""From finished run folders to one table a setting: mean and deviation over seeds, gap closed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from utils_.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

# how the round that is reported was chosen: {key of result.json: what the caption says}
SELECTIONS = {
    "last": "the last round",
    "last5": "the mean of the last five tested rounds",
    "val_selected": "the round with the best validation mAP",
    "oracle_selected": "the round with the best TEST mAP (optimistic, not a fair estimate)",
}
COLUMNS = {
    "mAP": "mAP",
    "macro-F1": "macro_f1",
    "recall": "macro_recall",
    "BACC": "balanced_accuracy",
    "AUROC": "macro_auroc",
}
BASELINE = "fedavg"
REQUIRED = ("method", "dataset", "seed", "leaky", "bound")
# options that do not part one setting from another: what is named in the setting anyway, compared
# or repeated, and what is merely practical
APART = {"dataset", "noise", "noise_type", "missing", "missing_type"}
APART |= {"method", "param", "seed", "data_seed"}
APART |= {"device", "workers", "checkpoint_every", "cache_dir", "save_dir", "name"}


def collect(runs: Path | Iterable[Path]) -> pd.DataFrame:
    """Read every finished run below the given folders.

    Args:
        runs: run folders, or folders that hold some at any depth.

    Returns:
        One line a run: ``run`` (its folder), the plain entries of ``result.json``, its nested ones
        as ``last5.mAP`` or ``labels.noise_recall``, the settings as ``config.<name>``,
        ``hardware``, and ``finished`` (time of ``result.json``). ``attrs["skipped"]`` lists the
        folders left out, each as text with the reason.

    Raises:
        UserError: a given folder does not exist.
    """
    import pandas as pd

    lines, skipped = [], []
    for folder in _run_folders([runs] if isinstance(runs, (str, Path)) else runs):
        try:
            lines.append(_read_run(folder))
        except (OSError, ValueError) as error:
            skipped.append(f"{folder}: {' '.join(str(error).split())}")
    frame = pd.DataFrame(lines)
    frame.attrs["skipped"] = skipped
    return frame


def results_table(frame: pd.DataFrame, *, selection: str = "last5") -> str:
    """Return Markdown: for each setting a table of methods, aligned for a terminal too.

    A setting is the data set, the noise, the missing labels and every other option in which the
    runs differ, so that unlike runs are never averaged. Values are mean ± standard deviation
    (ddof = 1) over seeds; the best mean of a column is bold, bounds and leaky runs apart. ``gap
    closed`` is (method - fedavg) / (clean - fedavg) in mAP, per seed, then averaged over the seeds
    where both bounds exist and the denominator is positive. A clean-label run serves as the bound
    of every setting that differs from its own in noise and missing labels only, since those do not
    touch it. Of several runs alike in all but their folder the newest counts.

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

    A cell holds mAP and, in brackets, ``gap closed``, and the number of seeds where there are fewer
    than of other methods; see :func:`results_table`, also for the arguments and what is raised.
    What all settings share is left out of their names, and so is a setting that has nothing but a
    bound, which it lends to the others.
    """
    frame, repeated = _checked(frame, selection)
    fair = frame[~frame["bound"].astype(bool)]
    shown = frame[~frame["bound"].astype(bool) | ~frame["base"].isin(fair["base"])]
    parts = dict(sorted(zip(shown["setting"], shown["parts"], strict=True)))
    shared = [p for p in next(iter(parts.values())) if all(p in own for own in parts.values())]
    shared = shared if len(parts) > 1 else []
    heads = [", ".join(p for p in own if p not in shared) for own in parts.values()]
    columns = [_brief(_with_bounds(frame, setting), selection) for setting in parts]
    lines = [[label, *(c.get(label, "") for c in columns)] for label in _ordered(frame)]
    table = _aligned([["method", *heads], *lines])
    common = f"All: {', '.join(shared)}.\n" if shared else ""
    return f"{table}\n\n{common}{_caption(frame, selection, repeated)}"


def _checked(frame: pd.DataFrame, selection: str) -> tuple[pd.DataFrame, int]:
    """See :func:`_prepared`; refuses an unknown selection and a frame without runs."""
    if selection not in SELECTIONS:
        raise UserError(f"--selection {selection}: unknown rule; {nearest(selection, SELECTIONS)}")
    if frame.empty:
        raise UserError("no finished run to tabulate; train one with python src/main_fednml.py")
    return _prepared(frame)


def _run_folders(roots: Iterable[Path]) -> list[Path]:
    found = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give run folders or a folder that holds them")
        for name in ("config.yaml", "result.json"):
            for path in sorted(root.rglob(name)):
                found.setdefault(path.parent.resolve(), path.parent)
    return sorted(found.values())


def _read_run(folder: Path) -> dict[str, Any]:
    """Return one line of the frame.

    Raises:
        ValueError, OSError: the run is unfinished, or a file is damaged or cannot be read.
    """
    if not (folder / "DONE").exists():
        raise ValueError("not finished")
    result = _table(folder / "result.json", json.loads)
    config = _table(folder / "config.yaml", yaml.safe_load)
    absent = [name for name in (*REQUIRED, "last") if name not in result]
    if absent:
        raise ValueError(f"result.json lacks {', '.join(absent)}")
    if not all(isinstance(config.get(name), (int, float)) for name in ("noise", "missing")):
        raise ValueError("config.yaml lacks the number 'noise' or 'missing'")
    line = {"run": str(folder), "finished": (folder / "result.json").stat().st_mtime}
    line |= {name: value for name, value in result.items() if not isinstance(value, dict)}
    for part in (*SELECTIONS, "labels"):
        line |= {f"{part}.{name}": value for name, value in _numbers(part, result).items()}
    line |= {f"config.{name}": value for name, value in config.items()}
    return line | {"hardware": _hardware(folder / "env.json")}


def _table(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name} is damaged ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a table of names and values")
    return content


def _numbers(part: str, result: Mapping[str, Any]) -> dict[str, float]:
    """Return one nested entry of a result; null (no such selection) is empty."""
    entry = result.get(part)
    entry = {} if entry is None else entry
    if not isinstance(entry, dict):
        raise ValueError(f"result.json: '{part}' is not a table of numbers")
    entry = {name: np.nan if value is None else value for name, value in entry.items()}
    for name, value in entry.items():
        if not isinstance(value, (int, float)):
            raise ValueError(f"result.json: '{part}.{name}' is not a number")
    return entry


def _hardware(path: Path) -> str:
    hardware = _table(path, json.loads).get("hardware", "") if path.exists() else ""
    if isinstance(hardware, dict):
        return ", ".join(f"{name} {value}" for name, value in hardware.items())
    return str(hardware)


def _prepared(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Name each run's setting, its base (the setting but for the flaws), row and replicate.

    Returns:
        The runs without older repetitions, and how many those are.
    """
    runs = frame.to_dict("records")
    shared = [name for name in frame if name.startswith("config.")]
    shared = [name for name in shared if name.removeprefix("config.") not in APART]
    varying = [name for name in shared if _varies(runs, name)]
    rest = [[f"{name[7:]} {run[name]}" for name in varying] for run in runs]
    bases = [[str(run["dataset"]), *more] for run, more in zip(runs, rest, strict=True)]
    parts = [[own[0], *_flaws(run), *own[1:]] for run, own in zip(runs, bases, strict=True)]
    frame = frame.assign(
        base=[", ".join(own) for own in bases],
        parts=parts,
        setting=[", ".join(own) for own in parts],
        label=_method_labels(runs),
        replicate=[f"{run['seed']}/{run.get('config.data_seed', '')}" for run in runs],
    )
    newest = frame.sort_values("finished", kind="stable")
    newest = newest.drop_duplicates(["setting", "label", "replicate"], keep="last")
    return newest, len(frame) - len(newest)


def _varies(runs: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether runs differ in an option; one older than the option, without it, does not differ."""
    return len({str(run[name]) for run in runs if run[name] == run[name]}) > 1  # NaN: absent


def _flaws(run: Mapping[str, Any]) -> list[str]:
    """Return e.g. ``noise 0.4 (paper)`` and ``missing 0.5 (classes)``; the type only if it acts."""
    found = []
    for name in ("noise", "missing"):
        rate, kind = run.get(f"config.{name}", 0), run.get(f"config.{name}_type", "")
        found.append(f"{name} {rate:g}" + (f" ({kind})" if rate else ""))
    return found


def _method_labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the rows: the method, the parameters in which its runs differ, leaky or bound."""
    params: dict[tuple, list[dict]] = {}
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
    rows = dict(iter(group.groupby("label")))
    columns = [_marked(rows, selection, metric) for metric in COLUMNS.values()]
    columns.append({label: str(len(rows[label])) for label in rows})
    columns.append({label: _gap_closed(group, rows[label], selection) for label in rows})
    lines = [[label, *(column[label] for column in columns)] for label in _ordered(group)]
    return _aligned([["method", *COLUMNS, "seeds", "gap closed"], *lines])


def _brief(group: pd.DataFrame, selection: str) -> dict[str, str]:
    """For each method mAP and, in brackets, the share of the gap that is closed."""
    rows = dict(iter(group.groupby("label")))
    cells, most = _marked(rows, selection, "mAP"), max(map(len, rows.values()))
    for label, runs in rows.items():
        notes = [_gap_closed(group, runs, selection).replace(" (", ", ").rstrip(")")]
        if len(runs) < most:
            notes.append(f"{len(runs)} of {most} seeds")
        known = dict.fromkeys(note for note in ", ".join(notes).split(", ") if note)
        cells[label] += f" ({', '.join(known)})" if known else ""
    return cells


def _ordered(frame: pd.DataFrame) -> list[str]:
    """The labels, as their rows are shown."""
    first = frame.drop_duplicates("label").to_dict("records")
    return [run["label"] for run in sorted(first, key=_row_rank)]


def _marked(rows: Mapping[str, pd.DataFrame], selection: str, metric: str) -> dict[str, str]:
    """For each label mean and deviation of a metric; the best in bold, bounds and leaky apart."""
    values = {label: _values(runs, selection, metric) for label, runs in rows.items()}
    fair = [label for label in rows if not rows[label][["leaky", "bound"]].any(axis=None)]
    best = _best({label: values[label] for label in fair})
    marks = {label: "**" if label in best else "" for label in rows}
    return {
        label: marks[label] + _mean_and_deviation(values[label]) + marks[label] for label in rows
    }


def _row_rank(run: Mapping[str, Any]) -> tuple:
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
        "Bold: best mean, bounds and leaky runs apart. Gap closed: (method - fedavg) / "
        "(clean - fedavg) in mAP.",
        f"Hardware: {hardware}.",
    ]
    if frame["leaky"].any():
        lines.append("(leaky): trained with labels hidden from its sites; never compare as equal.")
    if frame["bound"].any():
        lines.append("(bound): trained with the true labels, which no real site has.")
    if repeated:
        lines.append(f"{repeated} older repetition(s) of the same run left out.")
    return "\n".join(lines)
