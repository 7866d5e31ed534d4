"""Figures that compare the methods of one setting: gap, classes, sites, calibration, cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils_.metrics import CALIBRATION_BINS
from utils_.reporting.comparison import MethodRow, Setting
from utils_.reporting.drawing import (
    COLOURS,
    GRID,
    INK,
    ReportFigure,
    legend,
    look,
    name_axes,
    new_figure,
)
from utils_.run_groups import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASS_METHODS = 4  # whose classes are drawn; more dots cannot be told apart
MOST_SITES, MOST_CLASSES = 30, 45  # in the map of sites and classes
FEWEST_CELLS = 20  # in a bin of probabilities that is drawn
OWN = "fednml"
NOT_KEPT = "No run here has kept its predictions (runs of earlier versions have none)."


def _place(setting: Setting, row: MethodRow) -> int:
    return list(setting.rows).index(row)


def _by_method(panel: Axes, rows: Sequence[MethodRow]) -> None:
    """A line a method, the first on top."""
    panel.set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
    panel.set_ylim(len(rows) - 0.5, -0.5)


def _height(lines: int) -> float:
    return 1.1 + 0.24 * lines


def gap_bars(setting: Setting, rule: str) -> ReportFigure:
    """Share of the gap between FedAvg and clean labels that each method closes."""
    title = "Gap closed"
    rows = [row for row in setting.rows if row.method != BASELINE and len(row.gap)]
    rows = [row for row in rows if not row.records[0].result["bound"]]
    if not rows:
        return ReportFigure(
            "gap",
            title,
            absent="It takes a run of fedavg, one of clean and one of another method on the same "
            "seed, and clean labels that are better than flawed ones.",
        )
    figure, (panel,) = new_figure(height=_height(len(rows)))
    for line, row in enumerate(rows):
        share = 100 * row.gap
        style = {"color": look(_place(setting, row))["color"]}
        panel.barh(line, share.mean(), height=0.55, alpha=0.55 if row.fair else 0.2, **style)
        panel.plot(share, np.full(len(share), line), "o", ms=3.5, **style)
    panel.axvline(0, color=INK, lw=0.8)
    panel.axvline(100, color=INK, lw=0.8, ls="--")
    _by_method(panel, rows)
    name_axes(panel, "(method - fedavg) / (clean - fedavg) in mAP, %", "")
    return ReportFigure(
        "gap",
        title,
        f"Test set, {rule}. 0 % is FedAvg on flawed labels, 100 % (dashed) FedAvg on clean ones. "
        "Bars: mean over seeds; dots: each seed. Leaky runs are pale.",
        figure,
    )


def class_scores(setting: Setting, rule: str) -> ReportFigure:
    """Average precision of each class, from the rarest to the most frequent."""
    title = "Classes by prevalence"
    rows = _telling(setting)
    if not rows:
        return ReportFigure("classes", title, absent=NOT_KEPT)
    images = rows[0].images
    assert images is not None
    share = np.divide(
        images.positives,
        images.evaluated,
        out=np.full(len(images.positives), np.nan),
        where=images.evaluated > 0,
    )
    order = np.argsort(share, kind="stable")
    names, trained = setting.first.classes, setting.first.trained
    figure, (panel,) = new_figure(height=1.2 + 0.26 * len(order))
    for turn, row in enumerate(rows):
        _draw_classes(panel, row, order, look(_place(setting, row)), (turn + 0.5) / len(rows) - 0.5)
    labels = [
        f"{names[c]} ({int(images.positives[c])}/{int(images.evaluated[c])})"
        + " not trained" * (not trained.get(names[c], True))
        for c in order
    ]
    panel.set_yticks(range(len(order)), labels, parse_math=False)
    panel.set_ylim(-0.6, len(order) - 0.4)
    panel.set_xlim(0, 1)
    name_axes(panel, "average precision", "")
    legend(figure, panel)
    return ReportFigure(
        "classes",
        title,
        f"Test set, {rule}. In brackets: images with the finding / images where it is known. "
        "Bars: 95 % interval over test images, drawn with replacement; mean over seeds. A class "
        "without a dot has no positive or no negative there. Shown: "
        + ", ".join(row.label for row in rows)
        + ".",
        figure,
    )


def _telling(setting: Setting) -> list[MethodRow]:
    """FedAvg, FedNML, the best of the others and the bound: of those that kept predictions."""
    there = [row for row in setting.rows if row.images]
    fair = [row for row in there if row.fair]
    first = [row for row in fair if row.label in (BASELINE, OWN)]
    rest = [row for row in fair if row not in first]
    rest.sort(key=lambda row: -np.nan_to_num(row.values["mAP"].mean(), nan=-1))
    bounds = [row for row in there if row.records[0].result["bound"]][:1]
    chosen = [*first, *rest][: MOST_CLASS_METHODS - len(bounds)] + bounds
    return [row for row in setting.rows if row in (chosen or there[:MOST_CLASS_METHODS])]


def _draw_classes(
    panel: Axes, row: MethodRow, order: np.ndarray, style: dict[str, object], shift: float
) -> None:
    assert row.images is not None
    found = np.array([row.images.class_interval(c) for c in order]).T
    height = np.arange(len(order)) + 0.7 * shift
    known = ~np.isnan(found[0])
    panel.hlines(height[known], found[1][known], found[2][known], color=style["color"], lw=0.9)
    panel.plot(found[0], height, "o", ms=3.4, color=style["color"], label=row.label)


def annotated_and_missing(setting: Setting, rule: str) -> ReportFigure:
    """mAP of the classes that a site annotates against those that it does not."""
    title = "Annotated against missing classes"
    columns = ("mAP_annotated", "mAP_missing")
    rows = [r for r in setting.rows if not np.isnan([r.values[c].mean() for c in columns]).any()]
    if not rows:
        return ReportFigure("missing", title, absent="Every site annotates every class here.")
    figure, (panel,) = new_figure(height=_height(len(rows)) + 0.3)
    for line, row in enumerate(rows):
        ends = [row.values[column].mean() for column in columns]
        panel.plot(ends, [line, line], "-", color=GRID, lw=2.5)
    for column, colour, mark in zip(columns, COLOURS, "oD", strict=False):
        means = [row.values[column].mean() for row in rows]
        panel.plot(means, range(len(rows)), mark, color=colour, ms=5, label=column[4:])
    _by_method(panel, rows)
    name_axes(panel, "mAP on the test set", "")
    legend(figure, panel)
    return ReportFigure(
        "missing",
        title,
        "Mean average precision over all pairs of a site and a class that it annotates (dots), "
        f"and over those that it does not (diamonds); the model is the same. Test set, {rule}; "
        "mean over seeds.",
        figure,
    )


def site_map(setting: Setting) -> ReportFigure:
    """Which site annotates which class, and how often it finds it."""
    title, records = "Sites and classes", [r for row in setting.rows for r in row.records]
    record = next((own for own in records if own.annotated is not None), setting.first)
    annotated, positive = record.annotated, record.positive
    if annotated is None or positive is None:
        return ReportFigure("sites", title, absent="The runs are older than site_classes.csv.")
    sites, classes = annotated.shape
    if sites > MOST_SITES or classes > MOST_CLASSES:
        return ReportFigure(
            "sites",
            title,
            absent=f"{sites} sites and {classes} classes are too many for a figure; "
            "site_classes.csv beside each run has the numbers.",
        )
    figure, (panel,) = new_figure(height=1.5 + 0.24 * sites)
    _draw_cells(panel, annotated, positive)
    panel.set_yticks(range(sites), record.site_names, parse_math=False)
    panel.set_xticks(
        range(classes), record.classes, parse_math=False, rotation=60, ha="right", va="top"
    )
    panel.tick_params(axis="x", labelsize=7, pad=1)
    seed = record.result.get("data_seed", "")
    return ReportFigure(
        "sites",
        title,
        "Number of training images that the site calls positive; the darker, the larger their "
        "share of the images that it annotates. A dash: the class is not annotated there. Data "
        f"seed {seed}.",
        figure,
    )


def _draw_cells(panel: Axes, annotated: np.ndarray, positive: np.ndarray) -> None:
    from matplotlib.patches import Rectangle

    panel.grid(visible=False)
    size = 6.5 if annotated.shape[1] <= 25 else 5
    for k, c in np.ndindex(*annotated.shape):
        seen = annotated[k, c] > 0
        if seen:
            alpha = 0.06 + 0.6 * float(positive[k, c] / annotated[k, c]) ** 0.5
            box = Rectangle((c - 0.5, k - 0.5), 1, 1, facecolor=COLOURS[0], alpha=alpha, lw=0)
            panel.add_patch(box)
        text = str(positive[k, c]) if seen else "–"
        panel.text(c, k, text, ha="center", va="center", fontsize=size, color=INK)
    panel.set_xlim(-0.5, annotated.shape[1] - 0.5)
    panel.set_ylim(annotated.shape[0] - 0.5, -0.5)


def reliability(setting: Setting, rule: str) -> ReportFigure:
    """How often a finding is there, by the probability that the model gives it."""
    title = "Reliability"
    rows = [row for row in setting.rows if row.images]
    if not rows:
        return ReportFigure("reliability", title, absent=NOT_KEPT)
    figure, (panel, below) = new_figure(2, height=3.1)
    panel.plot([0, 1], [0, 1], color=INK, lw=0.7, ls=":")
    edges = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    for row in rows:
        assert row.images is not None
        cells, probability, positives = row.images.bins.T
        style = look(_place(setting, row))
        shown = cells >= FEWEST_CELLS
        ratio = [part[shown] / cells[shown] for part in (probability, positives)]
        panel.plot(*ratio, marker="o", ms=3, lw=1.1, label=row.label, **style)
        below.step(edges, cells / cells.sum(), where="post", lw=1.1, **style)
    below.set_yscale("log")
    below.set_ylim(1e-4, 1)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    below.set_xlim(0, 1)
    name_axes(panel, "mean probability", "share that has the finding")
    name_axes(below, "probability", "share of cells (log)")
    legend(figure, panel)
    return ReportFigure(
        "reliability",
        title,
        f"Test images, all classes together, {CALIBRATION_BINS} bins of equal width; bins of fewer "
        f"than {FEWEST_CELLS} cells are left out on the left. Dotted: perfectly calibrated. "
        f"Test set, {rule}; all seeds pooled.",
        figure,
    )


def cost(setting: Setting, rule: str) -> ReportFigure:
    """What a method costs, in time and in bytes, against mAP."""
    figure, panels = new_figure(2, height=3.0)
    for row in setting.rows:
        results = [record.result for record in row.records]
        hours = [result.get("seconds", np.nan) / 60 for result in results]
        sent = [result.get("bytes_up", 0) + result.get("bytes_down", 0) for result in results]
        mark = {"color": look(_place(setting, row))["color"], "ls": "none", "label": row.label}
        mark |= {"marker": "oDs"[_place(setting, row) // len(COLOURS) % 3], "ms": 5}
        panels[0].plot(np.mean(hours), row.values["mAP"].mean(), **mark)
        panels[1].plot(np.mean(sent) / 1e6, row.values["mAP"].mean(), **mark)
    name_axes(panels[0], "minutes of the run", "mAP on the test set")
    name_axes(panels[1], "MB sent, both ways", "")
    for panel in panels:
        panel.set_xlim(left=0)
    legend(figure, panels[0])
    hardware = sorted({str(r.environment.get("hardware")) for m in setting.rows for r in m.records})
    return ReportFigure(
        "cost",
        "Cost against mAP",
        f"Means over seeds. Test set, {rule}. Time on {'; '.join(hardware)}, with whatever else "
        "ran there.",
        figure,
    )


def method_pictures(setting: Setting, rule: str) -> Sequence[ReportFigure]:
    """All figures of this file; ``rule`` says how the round was chosen."""
    return [
        gap_bars(setting, rule),
        class_scores(setting, rule),
        annotated_and_missing(setting, rule),
        site_map(setting),
        reliability(setting, rule),
        cost(setting, rule),
    ]
