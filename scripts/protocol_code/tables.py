"""The tables of the test seeds: paired differences to FedAvg, corrected p-values, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from scripts.protocol_code.rows import Row
from utils_.markdown import aligned
from utils_.rank_table import rank_rows
from utils_.stats import Paired, holm, paired_difference

BASELINE = "fedavg"
SCORES = {"val_selected": "best on validation", "last5": "last five", "last": "last"}
HEAD = ("method", "mAP", "difference", "95 % interval", "wins", "p (Holm)")
Scores = dict[int, float]  # seed: mAP


def show(
    rows: Sequence[Row], *, methods: Sequence[str], settings: Sequence[str], selection: str
) -> str:
    """Markdown: one table a setting, then ranks over all settings, then what it rests on.

    Args:
        rows: of the test seeds.
        methods: in the order in which they are shown.
        settings: the same.
        selection: which round counts, a key of ``SCORES``; another is shown beside it.
    """
    rows = [r for r in rows if r["method"] in methods and r["setting"] in settings]
    bounds = {r["method"] for r in rows if r["bound"] == "True"}
    order = sorted(dict.fromkeys(methods), key=lambda m: (m != BASELINE, m in bounds))
    parts = []
    for setting in settings:
        own = [row for row in rows if row["setting"] == setting]
        if own:
            parts.append(f"### {setting}\n\n{_section(own, order, bounds, selection=selection)}")
    fair = [method for method in order if method not in bounds]
    parts += [f"### Ranks\n\n{_ranks(rows, fair, selection)}", _caption(rows, selection)]
    return "\n\n".join(parts)


def scores(rows: Sequence[Row], column: str) -> dict[str, Scores]:
    """{method: {seed: value}}; blanks are left out."""
    found: dict[str, Scores] = {}
    for row in rows:
        own = found.setdefault(row["method"], {})
        if row.get(column):
            own[int(row["seed"])] = float(row[column])
    return found


def differences(found: Mapping[str, Scores]) -> dict[str, Paired]:
    """For each method but FedAvg what pairs it with FedAvg, on the seeds that both have."""
    base, paired = found.get(BASELINE, {}), {}
    for method, own in found.items():
        seeds = sorted(set(own) & set(base))
        if method != BASELINE and seeds:
            pairs = np.array([(own[seed], base[seed]) for seed in seeds])
            paired[method] = paired_difference(pairs[:, 0], pairs[:, 1])
    return paired


def _section(rows: Sequence[Row], order: Sequence[str], bounds: set[str], *, selection: str) -> str:
    found = scores(rows, f"{selection}.mAP")
    paired = differences(found)
    compared = [method for method in order if method in paired and method not in bounds]
    adjusted = holm([paired[method].p for method in compared])
    p = dict(zip(compared, adjusted, strict=True))
    other = "last5" if selection == "val_selected" else "val_selected"
    beside = scores(rows, f"{other}.mAP")
    lines = [[*HEAD, f"mAP, {SCORES[other]}"]]
    for method in order:
        if method in found:
            cells = _cells(paired.get(method), p.get(method, math.nan))
            name = method + " (bound)" * (method in bounds)
            lines.append([name, _spread(found[method]), *cells, _spread(beside[method])])
    return aligned(lines)


def _cells(paired: Paired | None, p: float) -> list[str]:
    if paired is None:
        return ["", "", "", ""]
    interval = f"{paired.low:+.3f} to {paired.high:+.3f}" if paired.pairs > 1 else ""
    wins = f"{paired.wins} of {paired.pairs}"
    return [f"{paired.mean:+.3f}", interval, wins, "" if math.isnan(p) else f"{p:.3f}"]


def _spread(own: Scores) -> str:
    values = np.array(list(own.values()))
    if len(values) < 2:
        return f"{values[0]:.3f}" if len(values) else "–"
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _ranks(rows: Sequence[Row], methods: Sequence[str], selection: str) -> str:
    """Over the settings and seeds that all methods have; a method that lacks some has no rank."""
    blocks: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if row["method"] in methods and row.get(f"{selection}.mAP"):
            block = blocks.setdefault((row["setting"], int(row["seed"])), {})
            block[row["method"]] = float(row[f"{selection}.mAP"])
    lines, note = rank_rows(blocks, methods)
    return f"{aligned(lines)}\n\n{note}" if len(lines) > 1 else note


def _caption(rows: Sequence[Row], selection: str) -> str:
    def listed(name: str) -> str:
        return ", ".join(sorted({row[name] for row in rows}))

    seeds = sorted({int(row["seed"]) for row in rows})
    lines = [
        f"Test set, round: {SCORES[selection]} ({selection}). Mean ± standard deviation over "
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), which draw data, flaws and training.",
        f"Difference: method - {BASELINE} on the same seed, with the interval of a paired t test; "
        "wins: seeds above it. p: that test's, corrected for all methods of the setting (Holm).",
        "(bound): sees true labels; not among the p-values and ranks.",
        f"Rounds: {listed('rounds')}. Hardware: {listed('hardware')}. Commit: {listed('commit')}.",
    ]
    if len({row["commit"] for row in rows}) > 1 or len({row["hardware"] for row in rows}) > 1:
        lines.append("WRONG: rows of several commits or machines; the protocol wants one of each.")
    return "\n".join(lines)
