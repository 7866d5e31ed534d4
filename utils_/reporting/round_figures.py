"""Figures over the rounds of training: scores, noise detection, states of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils_.reporting.comparison import MethodRow, Setting
from utils_.reporting.drawing import COLOURS, INK, ReportFigure, legend, look, name_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND = "Lines: mean over seeds; bands: from the lowest to the highest seed."
MOST_STATES = 3  # methods whose label states are drawn side by side


def over_seeds(row: MethodRow, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(rounds,) numbers and (seeds, rounds) values of a column, of rounds that a seed has."""
    length = max((len(record.history) for record in row.records), default=0)
    table = np.full((len(row.records), length), np.nan)
    for own, record in zip(table, row.records, strict=True):
        own[: len(record.history)] = record.column(column)
    known = ~np.isnan(table).any(axis=0)
    return np.flatnonzero(known), table[:, known]


def draw_band(panel: Axes, row: MethodRow, column: str, place: int, *, label: str = "") -> bool:
    """Draw the mean of a column over the seeds with its band; False where no run has it."""
    rounds, table = over_seeds(row, column)
    if not len(rounds):
        return False
    style = look(place)
    mark = "o" if len(rounds) < 3 else None
    panel.plot(
        rounds + 1, table.mean(axis=0), label=label or row.label, lw=1.3, marker=mark, ms=3, **style
    )
    if len(table) > 1:
        ends = table.min(axis=0), table.max(axis=0)
        panel.fill_between(rounds + 1, *ends, color=style["color"], alpha=0.15, linewidth=0)
    return True


def curves(setting: Setting) -> ReportFigure:
    """mAP over the rounds, on validation and test."""
    figure, panels = new_figure(2)
    drawn = 0
    for panel, part in zip(panels, ("val", "test"), strict=True):
        for place, row in enumerate(setting.rows):
            drawn += draw_band(panel, row, f"{part}_mAP", place)
        name_axes(panel, "round", "mAP", {"val": "validation", "test": "test"}[part])
    legend(figure, panels[1] if panels[1].lines else panels[0])
    if not drawn:
        return ReportFigure("curves", "Curves", absent="No run has logged a score of any round.")
    return ReportFigure(
        "curves",
        "mAP over the rounds",
        f"Score of the global model after each round. {BAND} The test part is scored now and "
        "then, and chooses nothing.",
        figure,
    )


def noise_detection(setting: Setting) -> ReportFigure:
    """AUROC of the methods' noise scores, beside what the labels alone tell."""
    title, figure_and_panels = "Noise detection over the rounds", new_figure(2)
    figure, panels = figure_and_panels
    columns = ("labels_noise_auroc", "labels_noise_auroc_within_class")
    judged = [row for row in setting.rows if len(over_seeds(row, columns[0])[0])]
    if not judged:
        return ReportFigure(
            "noise-detection",
            title,
            absent="No method here gives images a noise score, or nobody knows which labels "
            "are wrong.",
        )
    for panel, column in zip(panels, columns, strict=True):
        for row in judged:
            draw_band(panel, row, column, list(setting.rows).index(row))
        panel.axhline(0.5, color=INK, lw=0.6, ls=":")
    rounds, counting = over_seeds(judged[0], "labels_noise_auroc_counting")
    if len(rounds):
        own = {"color": INK, "lw": 1.1, "ls": "--"}
        panels[0].plot(rounds + 1, counting.mean(axis=0), label="labels only (counting)", **own)
    name_axes(panels[0], "round", "AUROC", "images with a wrong label")
    name_axes(panels[1], "round", "AUROC", "wrong positives within a class")
    legend(figure, panels[0])
    return ReportFigure(
        "noise-detection",
        title,
        "How well the noise score ranks images with a wrong annotation before others, within each "
        f"site; 0.5 (dotted) is guessing. {BAND} Labels only: the number of an image's annotated "
        "positives as its score, as no model is needed for it. Judged with the truth, which no "
        "site sees.",
        figure,
    )


def label_states(setting: Setting) -> ReportFigure:
    """Shares of cells that are as annotated, corrected, guessed and unused."""
    title = "States of the labels over the rounds"
    active = [row for row in setting.rows if _changes_labels(row)]
    if not active:
        return ReportFigure(
            "label-states", title, absent="No method here corrects or guesses labels of its sites."
        )
    figure, panels = new_figure(min(len(active), MOST_STATES))
    for panel, row in zip(panels, active, strict=False):
        _draw_states(panel, row)
        name_axes(panel, "round", "share of all cells" * (panel is panels[0]), row.label)
        panel.title.set_parse_math(False)
        panel.set_ylim(0, 1)
    legend(figure, panels[0])
    more = f" Of {len(active)} such methods the first {MOST_STATES}." * (len(active) > MOST_STATES)
    return ReportFigure(
        "label-states",
        title,
        "Cells (an image and a class) at all sites, by what training uses: the annotation, a "
        f"corrected annotation, a pseudo-label, or nothing. Mean over seeds.{more}",
        figure,
    )


def _changes_labels(row: MethodRow) -> bool:
    columns = ("labels_corrected_cells", "labels_pseudo_cells")
    return any(np.nansum(record.column(name)) > 0 for record in row.records for name in columns)


def _draw_states(panel: Axes, row: MethodRow) -> None:
    rounds, corrected = over_seeds(row, "labels_corrected_cells")
    _, guessed = over_seeds(row, "labels_pseudo_cells")
    cells = row.records[0].cells
    annotated = row.records[0].annotated_cells / cells
    shares = [part.mean(axis=0) / cells for part in (corrected, guessed)]
    parts = {
        "as annotated": (annotated - shares[0], COLOURS[0], 0.75),
        "corrected": (shares[0], COLOURS[1], 0.9),
        "pseudo-label": (shares[1], COLOURS[2], 0.6),
        "unused": (1 - annotated - shares[1], COLOURS[7], 0.25),
    }
    base: np.ndarray = np.zeros(len(rounds))
    for name, (share, colour, alpha) in parts.items():
        top = base + share.clip(0)
        panel.fill_between(
            rounds + 1, base, top, color=colour, alpha=alpha, lw=0, label=name, step="mid"
        )
        base = top


def round_pictures(setting: Setting) -> Sequence[ReportFigure]:
    """All figures of this file."""
    return [curves(setting), noise_detection(setting), label_states(setting)]
